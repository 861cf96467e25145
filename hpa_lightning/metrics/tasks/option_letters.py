"""Which options, named by letters, a text names as its answer; the rule is in `option_accuracy`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpa_lightning.metrics.judges.judged_text import given_answer
from hpa_lightning.metrics.tasks.characters import plain_characters

_BRACKETED = r"[(\[\u3010]\s*([A-Za-z])\s*[)\]\u3011]"
_CAPITAL = r"(?<![A-Za-z0-9_'-])([A-Z])(?![A-Za-z0-9_']|-\w)"  # one that is no part of a word; Chinese has no spaces
_AND = r"\s*(?:,\s*(?:and|or)\b|[,;/&\u3001]|\b(?:and|or)\b|[\u548c\u6216\u4e0e])\s*(?:(?:option|choice)\s+)?"
_SURELY = (
    r"(?:(?:most likely|likely|probably|clearly|definitely|certainly|obviously|actually|indeed|simply|therefore|thus"
    r"|hence|surely),?\s+)?"
)
_OF_WHAT = r"(?:\s+(?:to|for|of|in|among|from|based on|according to)\b[^.:;\n]{0,60}?)?"
_IS = (
    rf"\b(?:(?:answer|option|choice|guess)s?{_OF_WHAT}\s*"
    r"(?:(?:is|are|(?:should|would|must|will) be|seems to be)\b\s*:?|:|\s[-\u2013\u2014=]|->|=>|\u2192)"
    r"|ans\s*[.:=-]|(?:antwort|respuesta|resposta|risposta|r[e\u00e9]ponse)\s*(?::|(?:ist|es|est|[\u00e9\u00e8])\b)"
    r"|(?:\u7b54\u3048|\u6b63\u89e3)\s*(?::|\u306f)|\uc815?\ub2f5\s*(?::|\uc740))\s*"
    rf"{_SURELY}"
)
# "the answer is B" and "choose B" in Chinese: 答案(是|为|:), 选(择|项|:), 应选, 故选.
_IS_CHINESE = (
    r"(?:\u7b54\u6848|\u56de\u7b54(?=\s*:)|\u9009\u9879|\u9009\u62e9|\u9009)\s*(?:\u5e94\u8be5|\u5e94)?"
    r"(?:\u662f|\u4e3a|\u9009)?\s*:?\s*"
)
_CHOOSE = (
    r"\b(?:choose|chose|select|pick|opt for|go with|going with|vote for)\s+"
    r"(?:(?:the\s+)?(?:option|choice|letter|answer)\s+)?"
)
_CORRECT = (
    r"\s+(?:is|seems|looks|would be|must be|should be)\s+(?:indeed\s+|clearly\s+|definitely\s+|the\s+|most\s+|my\s+)*"
    r"(?:correct|right|true|answer|choice|best (?:answer|choice|option|match)|accurate|only (?:correct|right|valid)"
    r"|final answer|appropriate)\b"
)
# "B.a banana", "B.No", "B.12 cm" without a space: behind an initial ("E.coli", "J.Smith") none of these stands.
_OPTION_TEXT = (
    r"(?:(?i:an?|the|it|they|he|she|yes|no|true|false|both|neither|none|all|because|to|in|on|at|by|from|with)\s"
    r"|(?i:yes|no|true|false|both|neither|none|all)\W*$|[-+$]?\d+(?:[.,/]\d+)?\s*[^\s.]{0,8}\.?$)"
)
# Options that a text says are wrong: "not (A)", "neither A nor B", "(A) and (C) are wrong", "rather than (A)".
_LETTER = rf"(?:{_BRACKETED}|{_CAPITAL})".replace("([A-Za-z])", "[A-Za-z]").replace("([A-Z])", "[A-Z]")
_LETTERS = rf"(?:(?:option|choice|answer)s?\s+)?{_LETTER}(?:(?:{_AND}|\s+nor\s+){_LETTER}){{0,9}}"
_DENIED = re.compile(
    r"(?i:\b(?:not|neither|nor|none of|rather than|instead of|unlike|except|exclude|excluding|rule out|eliminate)\s+"
    r"(?:the\s+)?)"
    rf"{_LETTERS}"
    rf"|{_LETTERS}\s+(?i:(?:is|are|was|were|can(?:not| be)|could(?: not)? be|seems?|must be|isn't|aren't)\s+"
    r"(?:all\s+|both\s+|clearly\s+|simply\s+|be\s+)*(?:not|wrong|incorrect|false|ruled out|eliminated|excluded|untrue"
    r"|irrelevant|too|an? (?:wrong|incorrect))\b"
    rf"|(?:isn't|aren't|cannot be)\b)"
    rf"|{_LETTER}\s*(?:\u4e0d\u6b63\u786e|\u9519\u8bef|\u4e0d\u5bf9)"
    rf"|(?:\u4e0d(?:\u5e94\u8be5?|\u8981|\u80fd)?(?:\u662f|\u9009\u62e9?)|\u6392\u9664|\u5e76\u975e)\s*{_LETTER}"
)

ALONE = re.compile(r"[(\[\u3010]?\s*([A-Za-z])\s*[)\]\u3011]?\s*[.:!]?")
AT_THE_START = re.compile(
    rf"(?:{_BRACKETED}[.:]?(?:\s+[-\u2013\u2014])?|([A-Za-z])(?:[):]|\.(?=[\s\u4e00-\u9fff]))"
    rf"|([A-Z])\.(?={_OPTION_TEXT})|([A-Z])\u3001(?![A-Z]\b))\s*(?=\S)"
    r"|(?!I\b)([A-Z])\s+[-\u2013\u2014|]\s+(?=\S)"
)
_BECAUSE = re.compile(r"(?!I\b)([A-Z]),?\s+(?:because|since|due to)\b")
_LATER_IN_LINE = re.compile(rf"(\b(?:and|or)\b|[,;/&])?\s*(?:{_BRACKETED}|(?<![\w'-])([A-Z])(?:[):]|\.(?=\s+\S)))")
_STATED = re.compile(
    rf"(?i:{_IS}(?:(?:the\s+)?(?:option|choice|letter)\s+)?)(?:{_BRACKETED}|{_CAPITAL}|([a-z])(?=\s*(?:[.;:]|$)))"
    rf"|{_IS_CHINESE}(?:{_BRACKETED}|{_CAPITAL})|{_CAPITAL}\s*\u9009?\u9879?(?:\u662f)?(?:\u6b63\u786e|\u5bf9\u7684)"
    rf"|(?i:{_CHOOSE})(?:{_BRACKETED}|{_CAPITAL}(?!\s+[a-z]))"
    rf"|(?:^|(?<=[.!?:;,]\s)|(?i:\b(?:so|thus|hence|therefore|that|think|believe|say|option|choice|answer|letter)\s+))"
    rf"(?:{_BRACKETED}|{_CAPITAL})(?={_CORRECT})"
    rf"|(?i:\b(?:it is|it's|it must be|it should be)\s+(?:option\s+)?){_CAPITAL}(?=\s*[.!]?$)",
    re.MULTILINE,
)
_MENTIONED = re.compile(
    rf"(?i:\b(?:answer|option|choice)\s+){_CAPITAL}|{_BRACKETED}|{_CAPITAL}\s*\u9009?\u9879(?!\u76ee)"
    r"|(?i:\b(?:option|choice)\s+([a-z])(?=\s*\.?$))|^(?:So|Thus|Hence|Therefore),?\s+([A-Z])\.?$",
    re.MULTILINE,
)
_CONTINUED = re.compile(rf"{_AND}(?:{_BRACKETED}|{_CAPITAL})")
LEAD_IN = re.compile(
    rf"(?i:(?:(?:so|thus|therefore),?\s+)?(?:the\s+)?(?:(?:correct|right|best|final)\s+)*{_IS})|{_IS_CHINESE}"
)

# A hyphen makes one word ("B-cell"), and this one parts two, without spaces too: "The answer is B\u2014the cat".
_EM_DASH = re.compile("[\u2014\u2015\ufe58]+(?!>)")
# Of a list, and of a heading.
_BULLET = re.compile(r"^(?:(?:->|=>|[-\u2022>\u2192])\s*|#{1,6}\s+)(?=\S)")
_LETTER_FIRST = re.compile(r"[\W_]*([A-Za-z])(?![A-Za-z0-9])")

_ALPHABET = 26  # options at most in one list

# Marks around a final answer; the last one counts alone. Behind `####` it is the last line: others are headings.
_BOX = r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_MARKED = re.compile(
    rf"{_BOX}"
    r"|<(?:final_)?answer>\s*(.*?)\s*(?:</(?:final_)?answer>|$)"
    r"|<\|begin_of_box\|>\s*(.*?)\s*(?:<\|end_of_box\|>|$)"
    r"|^[ \t]*####[ \t]*(\S[^\n]*)(?=\s*\Z)",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_BOXES = re.compile(_BOX, re.IGNORECASE)
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|bf|rm)\s*\{([^{}]*)\}")


def final_answer(text: str) -> str:
    """What a text gives as its answer: behind the thoughts, in the last mark if there is one, without LaTeX."""
    text = given_answer(text)
    marks = [next(group for group in match.groups() if group is not None) for match in _MARKED.finditer(text)]
    return without_latex(marks[-1] if marks else text)


def without_latex(text: str) -> str:
    r"""The plain text of LaTeX: no fonts, no marks of formulas.

    Example:
        >>> without_latex(r"$5$ \text{cm}").split()
        ['5', 'cm']
    """
    while (plain := _LATEX.sub(r"\1", text)) != text:
        text = plain
    return re.sub(r"\\[()\[\],;! ]|\$", " ", text)


def letter_of(groups: Sequence[str | None]) -> str:
    """The letter that a match found, upper case."""
    return next(group for group in groups if group).upper()


def split_letter(text: str) -> tuple[str, str] | None:
    """The single letter that a text begins with, upper case, and what follows it; whether it is an option is open.

    Example:
        >>> split_letter("(B) a banana"), split_letter("A banana"), split_letter("Bananas")
        (('B', 'a banana'), ('A', 'banana'), None)
    """
    match = _LETTER_FIRST.match(text)
    return None if match is None else (match[1].upper(), re.sub(r"^[\W_]+", "", text[match.end() :]))


def _with_list(text: str, match: re.Match[str]) -> set[str]:
    """The letter of a match and those that continue it in a list: `B or C`, `(B), (C)`."""
    letters, end = [letter_of(match.groups())], match.end()
    while len(letters) < _ALPHABET and (following := _CONTINUED.match(text, end)) is not None:
        letters.append(letter_of(following.groups()))
        end = following.end()
    return set(letters)


def _at_the_start(line: str) -> set[str]:
    if (alone := ALONE.fullmatch(line)) is not None:
        return {letter_of(alone.groups())}
    if (match := _BECAUSE.match(line)) is not None:
        return {letter_of(match.groups())}
    if (match := AT_THE_START.match(line)) is None:
        return set()
    rest = ALONE.fullmatch(line, match.end())  # "A - B" is a list, not an option and its text
    letters, last = _with_list(line, match) | ({letter_of(rest.groups())} if rest else set()), letter_of(match.groups())
    for later in _LATER_IN_LINE.finditer(line, match.end()):
        joined, *groups = later.groups()
        letter = letter_of(groups)
        if joined or ord(letter) == ord(last) + 1:
            letters.add(letter)
            last = letter
    return letters


def named_options(text: str) -> set[str]:
    """The letters, upper case, of the options that a text names; see `option_accuracy` for the rule.

    Example:
        >>> named_options("The answer is B."), sorted(named_options("(a) or (c)")), named_options("A banana")
        ({'B'}, ['A', 'C'], set())
        >>> named_options("(B), because (A) is wrong"), named_options("Neither A nor B")
        ({'B'}, set())
    """
    lines = _lines(final_answer(text))
    begun = [_at_the_start(line) for line in lines]
    stated = _stated(lines)
    named = set().union(*begun)
    # The options of the question, told again before the answer.
    if len(named) > 1 and stated and named == set(map(chr, range(ord("A"), ord("A") + len(named)))):
        named = set()
    named |= stated
    return named or _mentioned(lines) or _beside_boxes(given_answer(text))


def _lines(text: str) -> list[str]:
    """The lines of a text as they are read: plain characters, no emphasis, no bullets, no options that are denied."""
    text = plain_characters(_EM_DASH.sub(" - ", text)).replace("\u3002", ". ")
    text = re.sub(r"[*`\"\u300c\u300d]|__", "", text)
    text = re.sub(r"(?<!\w)'([A-Za-z])'(?!\w)", r"\1", text)
    lines = [_BULLET.sub("", " ".join(line.split())) for line in text.splitlines()]
    return _DENIED.sub(" ", "\n".join(line for line in lines if line)).split("\n")


def _stated(lines: Sequence[str]) -> set[str]:
    text = "\n".join(lines)
    return set().union(*(_with_list(text, match) for match in _STATED.finditer(text)))


def _mentioned(lines: Sequence[str]) -> set[str]:
    text = "\n".join(lines)
    return set().union(*(_with_list(text, match) for match in _MENTIONED.finditer(text)))


def _beside_boxes(text: str) -> set[str]:
    r"""The options stated around boxes: `\boxed{}` may hold a formula, and the letter stand before or behind it."""
    without = _BOXES.sub(" ", text)
    if without == text or _MARKED.search(without):
        return set()
    lines = _lines(without_latex(without))
    alone = [match for match in map(ALONE.fullmatch, lines) if match]
    return _stated(lines).union(letter_of(match.groups()) for match in alone)
