"""Whether a text is in another language than English, which the judges by wording read."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_NO_PROSE = re.compile(r"[{}=<>_/\\`]")  # code and addresses have no English words either
_FEWEST_OTHERS = 3
_FEWEST_WORDS = 8
_FEWEST_ACCENTED = 2
_MOST_ENGLISH = 1 / 6
_ACCENT = re.compile("[\u00df-\u024f\u1e00-\u1eff]")  # a small letter that English has not
_ENGLISH_WORDS = """
a an and are as at be been but by can could do does for from had has have he her his how i if in is it its me my no
not of on or our she so that the their them there they this to was we were what when which who will with would you
your
"""
# The most frequent words of German, French, Spanish, Italian, Portuguese, Dutch and Indonesian.
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
adalah akan anda bisa dapat dengan ini itu karena saya tidak untuk yang
"""
_NAME_WORDS = "da de del den der des di dos du el la las le les lo los van von"  # Los Angeles, Van der Waals
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_OTHERS = frozenset(_OTHER_WORDS.split()) - _ENGLISH
_IN_NAMES = frozenset(_NAME_WORDS.split())


def in_another_language(text: str) -> bool:
    """Whether a text is plainly in another language than English; a text of a few words may pass for English.

    Most of its letters are not Latin; or it has three or more different ones of the most frequent words of German,
    French, Spanish, Italian, Portuguese, Dutch and Indonesian, not all of them parts of names ("Los"), and more than
    twice as many such words as frequent English ones; or it is prose of eight or more words of which two or more small
    ones have letters that English has not, and less than one in six is a frequent English one.

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
    typed = _WORD.findall(text)
    words = [word.lower() for word in typed]
    english, others = sum(word in _ENGLISH for word in words), [word for word in words if word in _OTHERS]
    different = set(others)
    if len(different) >= _FEWEST_OTHERS and not different <= _IN_NAMES and len(others) > 2 * english:
        return True
    if len(words) < _FEWEST_WORDS or _NO_PROSE.search(text) or english >= _MOST_ENGLISH * len(words):
        return False
    accented = [word for word in typed if word.islower() and _ACCENT.search(word)]
    return len(accented) >= _FEWEST_ACCENTED
