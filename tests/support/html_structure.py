"""What tests of HTML pages share: a text that tries to become markup, and the structure of a page."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>\" onload=\"alert(2)' onerror='alert(3) javascript:x </style></title><!-- {{7}}"


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, and the values that are addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attributes)))
        self.addresses += [str(value) for name, value in attributes if name in ("src", "href", "action", "style")]
