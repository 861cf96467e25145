"""The categories of harm that published guard models name by codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpa_lightning.values import names, nearest

_LLAMA_GUARD_2 = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex-Related Crimes",
    "Child Sexual Exploitation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Suicide & Self-Harm",
    "Sexual Content",
)
_LLAMA_GUARD_3 = (*_LLAMA_GUARD_2[:4], "Defamation", *_LLAMA_GUARD_2[4:], "Elections", "Code Interpreter Abuse")
_LLAMA_GUARD_1 = (
    "Violence and Hate",
    "Sexual Content",
    "Criminal Planning",
    "Guns and Illegal Weapons",
    "Regulated or Controlled Substances",
    "Self-Harm",
)

#: Name -> code -> category, as the models' cards have them. Llama Guard 3 and 4 share theirs, the MLCommons hazards
#: with one for code interpreters.
TAXONOMIES: dict[str, dict[str, str]] = {
    "llama-guard-3": {f"S{n}": name for n, name in enumerate(_LLAMA_GUARD_3, 1)},
    "llama-guard-4": {f"S{n}": name for n, name in enumerate(_LLAMA_GUARD_3, 1)},
    "llama-guard-2": {f"S{n}": name for n, name in enumerate(_LLAMA_GUARD_2, 1)},
    "llama-guard-1": {f"O{n}": name for n, name in enumerate(_LLAMA_GUARD_1, 1)},
}


def taxonomy_of(part: str, given: str | Mapping[str, str]) -> dict[str, str]:
    """Return code, in capitals, -> category.

    Args:
        part: for messages.
        given: the name of a published taxonomy, or one of your own.

    Raises:
        ValueError: named by ``part``: no such taxonomy, or one of something else than texts.
    """
    if isinstance(given, str):
        if given not in TAXONOMIES:
            raise ValueError(
                f"{part}: taxonomy is {given!r}{nearest(given, TAXONOMIES)}; expected code: name, or one of "
                f"{', '.join(TAXONOMIES)}."
            )
        return dict(TAXONOMIES[given])
    if not given or not all(isinstance(text, str) and text.strip() for pair in given.items() for text in pair):
        raise ValueError(f"{part}: taxonomy is {given!r}; expected code: name.")
    return {code.upper(): name for code, name in given.items()}


def counted_codes(part: str, categories: Sequence[str] | None, taxonomy: Mapping[str, str]) -> frozenset[str] | None:
    """Return the codes of the categories that count; ``None``: all do.

    Args:
        part: for messages.
        categories: by code or name.
        taxonomy: code -> name.

    Raises:
        ValueError: named by ``part``: a category that the taxonomy does not have.

    >>> sorted(counted_codes("", ["s9", "Hate"], TAXONOMIES["llama-guard-3"]))
    ['S10', 'S9']
    """
    if categories is None:
        return None
    by_name = {name.lower(): code for code, name in taxonomy.items()} | {code.lower(): code for code in taxonomy}
    if isinstance(categories, str) or not categories:
        raise ValueError(f"{part}: categories is {categories!r}; expected a list of {names(taxonomy)}, or their names.")
    for category in categories:
        if category.lower() not in by_name:
            known = [*taxonomy, *taxonomy.values()]
            raise ValueError(
                f"{part}: there is no category {category!r}{nearest(category, known)}; expected some of "
                f"{names(f'{code}: {name}' for code, name in taxonomy.items())}."
            )
    return frozenset(by_name[category.lower()] for category in categories)
