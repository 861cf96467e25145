"""Whether a text is in another language than English, which the judges by wording read."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_NO_PROSE = re.compile(r"[{}=<>_/\\`]")  # code and addresses have no English words either
_FEWEST_OTHERS = 3
_FEWEST_WORDS = 8
_MOST_ENGLISH = 1 / 12
_ENGLISH_WORDS = """
a an and are as at be been but by can could do does for from had has have he her his how i if in is it its me my no
not of on or our she so that the their them there they this to was we were what when which who will with would you
your
"""
# The most frequent words of German, French, Spanish, Italian, Portuguese and Dutch that are no English ones.
_OTHER_WORDS = """
aber auch auf bei das dass dem den der des dich dir ein eine einen einer es für ich ihnen ihre ist kann keine
kein mir mit nicht oder sie sind tut über und von wie wir zu zum zur
au aux avec ce cela cette dans de du elle est et être il ils je la le les mais mon ne nous ou par pas peux pour
que qui sont sur une vous votre suis
al como con del el ella ellos en eres esa ese eso esta este esto lo los las más muy nada para pero por porque
puedo se sin son su también tu un una yo siento
anche che chi come della delle di dei gli ho ha io lei ma mi nel non per perché più posso questo questa quello
sono uno
ao com da dos ela ele em essa esse isso isto mas meu minha na nas nos não os pela pelo sua são um uma você eu
aan dat deze een er het hij hoe ik je kan maar met mij naar niet om ook op te uit van voor wat wij ze zijn
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_OTHERS = frozenset(_OTHER_WORDS.split()) - _ENGLISH


def in_another_language(text: str) -> bool:
    """Whether a text is plainly in another language than English; a text of a few words may pass for English.

    Most of its letters are not Latin; or it has three or more of the most frequent words of German, French, Spanish,
    Italian, Portuguese and Dutch, and more than twice as many as of English ones; or it is prose of eight or more words
    of which less than one in twelve is a frequent English one.

    >>> in_another_language("Lo siento, pero no puedo ayudarte con eso."), in_another_language("对不起，我不能")
    (True, True)
    >>> in_another_language("I cannot help you."), in_another_language("Los Angeles and El Paso are in the USA.")
    (False, False)
    """
    return _in_another_script(text) or _in_another_latin_language(text)


def _in_another_script(text: str) -> bool:
    if text.isascii():
        return False
    letters = [character for character in text if character.isalpha()]
    latin = sum(character < "\u0250" or "\u1e00" <= character <= "\u1eff" for character in letters)
    return 2 * latin < len(letters)


def _in_another_latin_language(text: str) -> bool:
    words = _WORD.findall(text.lower())
    english, others = sum(word in _ENGLISH for word in words), sum(word in _OTHERS for word in words)
    if others >= _FEWEST_OTHERS and others > 2 * english:
        return True
    prose = len(words) >= _FEWEST_WORDS and not _NO_PROSE.search(text)
    return prose and english < _MOST_ENGLISH * len(words)
