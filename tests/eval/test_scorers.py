from __future__ import annotations

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.scorers import Scorer, official, register, scorer, scorers

# Verdicts of the public script, worked out by hand from its rule; surprising ones are marked.
GOLDEN = [
    ("yes", "yes"),
    ("no", "no"),
    ("Yes", "yes"),
    ("No", "no"),
    ("Yes.", "yes"),
    ("No.", "no"),
    ("Yes, there is a dog in the image.", "yes"),
    ("No, there is no dog in the image.", "no"),
    ("No, there isn't.", "no"),
    ("There is no dog in the image.", "no"),
    ("There is not a dog.", "no"),
    ("There isn't a dog in the image.", "yes"),  # n't is not looked for
    ("There are none.", "yes"),
    ("NO", "yes"),  # capitals are another word
    ("NO.", "yes"),
    ("nO", "yes"),
    ("Not at all", "yes"),  # "Not" is not in the list, "not" is
    ("It is not visible", "no"),
    ("", "yes"),
    (" ", "yes"),
    ("maybe", "yes"),
    ("I cannot tell", "yes"),
    ("No dog here", "no"),
    ("no,", "no"),  # the comma is dropped
    ("no!", "yes"),  # other marks are not
    ("no\n", "yes"),
    ("Yes. There is no cat.", "yes"),  # only the first sentence counts
    ("The image shows snow. No dog.", "yes"),
    (". no", "yes"),  # the first sentence is empty
    ("  no  ", "no"),
    ("Yes, but not in the front", "no"),
    ("There is nothing", "yes"),
    ("As far as I know, there is a dog", "yes"),
    ("Answer: no", "no"),
    ("Answer:no", "yes"),
    ("yes and no", "no"),
    ("1.5 dogs, no cat", "yes"),  # a decimal point ends the sentence too
]


@pytest.mark.parametrize(("answer", "verdict"), GOLDEN)
def test_official_rule(answer: str, verdict: str) -> None:
    assert official(answer, "yes") == verdict
    assert official(answer, "no") == verdict, "the gold label must not matter"


def test_the_default_is_the_official_rule() -> None:
    assert scorer().name == "official"
    assert scorer().parse is official
    assert "official" in scorers()


def test_unknown_scorer_names_the_near_one() -> None:
    with pytest.raises(MmattnError, match=r"Unknown scorer 'offical'.*Did you mean official"):
        scorer("offical")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register(Scorer("official", "2", "nowhere", official))
