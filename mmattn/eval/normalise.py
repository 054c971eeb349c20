"""Answers as EvalAI's VQA scorer compares them: without articles and marks, numbers as digits, apostrophes restored.

The rules are those of MMF's mmf/utils/m4c_evaluators.py, quirks included: a mark is deleted where a blank stands beside
it anywhere in the text and becomes a blank otherwise; a full stop goes unless a digit follows; "none" is 0.
"""

from __future__ import annotations

import functools
import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32  # no more of them go: there, a flag stands in the place of the count
_NUMBERS = "zero one two three four five six seven eight nine ten"
_ARTICLES = ("a", "an", "the")

# Each of these is also recognised with any one of its apostrophes left out. All is in lower case when it is looked up,
# so that the list's own "I'm" and "I've" never match and are not here.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def normalise(answer: str) -> str:
    """The form of an answer in which it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if beside_blank else " ")
    words = (_digits().get(word, word) for word in _STOP.sub("", text, count=_STOPS).split())
    return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


@functools.cache
def _digits() -> dict[str, str]:
    return {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}


@functools.cache
def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # the wrong way round there
    for form in _CONTRACTIONS.split():
        for place in (index for index, letter in enumerate(form) if letter == "'"):
            table[form[:place] + form[place + 1 :]] = form
    return table
