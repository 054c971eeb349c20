from __future__ import annotations

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.scorers import Scorer, official, register, rules, scorer, scorers

# What each public rule makes of an answer, worked out by hand from its description: y yes, n no, u unparsable.
# Columns: official, opera, vcd where the label is yes, vcd where it is no, lmms-eval, mitigv.
GOLDEN = [
    ("yes", "yyyyyy"),
    ("no", "nnnnnn"),
    ("Yes", "yyyyyy"),
    ("No", "nnnnnn"),
    ("YES", "yyyyyy"),
    ("NO", "ynnnnn"),
    ("nO", "yynnnn"),
    ("Yes.", "yyyyuy"),
    ("No.", "nnnnun"),
    ("no!", "yynnun"),
    ("no,", "nnnnun"),
    ("no.", "nnnnun"),
    (" yes ", "yyyyyy"),
    ("  no  ", "nnnnnn"),
    ("no\n", "yynnnn"),
    ("Yes, there is a dog in the image.", "yyyyuy"),
    ("No, there is no dog in the image.", "nnnnun"),
    ("No, there isn't.", "nnnnun"),
    ("There is no dog in the image.", "nnnnun"),
    ("There is not a dog.", "nnnnuu"),
    ("There isn't a dog in the image.", "ynnyuu"),
    ("There are none.", "yynnuu"),
    ("Not at all", "yynnuu"),
    ("It is not visible", "nnnnuu"),
    ("", "yynyuu"),
    (" ", "yynyuu"),
    ("maybe", "yynyuu"),
    ("I cannot tell", "yynnuu"),
    ("I don't know", "ynnnuu"),
    ("As far as I know, there is a dog", "yynnuu"),
    ("No dog here", "nnnnun"),
    ("Yes. There is no cat.", "ynynuy"),
    ("The image shows snow. No dog.", "ynnnun"),
    (". no", "ynnnun"),
    ("Yes, but not in the front", "nnynuy"),
    ("There is nothing", "yynnuu"),
    ("Answer: no", "nnnnun"),
    ("Answer:no", "yynnun"),
    ("yes and no", "nnynuy"),
    ("no and yes", "nnynun"),
    ("1.5 dogs, no cat", "ynnnun"),
    ("Yes, there is snow", "yyynuy"),
    ("Yes, it is on the piano", "yyynuy"),
    ("Yesterday there was a dog", "yyyyuu"),
    ("eyes", "yyyyuu"),
    ("I can't see one", "ynnyuu"),
    ("I can’t see one", "yynyuu"),
    ("won't", "ynnyuu"),
    ("Nope", "yynnuu"),
    ("Nah", "yynyuu"),
    ("Yeah", "yynyuu"),
    ("Sure", "yynyuu"),
    ("Yes!", "yyyyuy"),
    ("**No**", "yynnun"),
    ("'no'", "yynnun"),
    ("no dog. yes cat.", "nnynun"),
    ("The answer is yes.", "yyyyuy"),
    ("The answer is no.", "nnnnun"),
    ("There is a dog, not a cat", "nnnnuu"),
    ("Neither", "yynyuu"),
    ("It is a dog", "yynyuu"),
    ("yes/no", "yyynuy"),
    ("N0", "yynyuu"),
    ("ja", "yynyuu"),
    ("是", "yynyuu"),
    ("No. Yes.", "nnynun"),
    ("Does not exist; yes", "nnynuy"),
    ("Unknown", "yynnuu"),
    ("a no-go", "yynnun"),
]
COLUMNS = [("official", ""), ("opera", ""), ("vcd", "yes"), ("vcd", "no"), ("lmms-eval", ""), ("mitigv", "")]
WORDS = {"y": "yes", "n": "no", "u": "unparsable"}


@pytest.mark.parametrize(("answer", "verdicts"), GOLDEN)
def test_golden_verdicts(answer: str, verdicts: str) -> None:
    for (name, only), verdict in zip(COLUMNS, verdicts, strict=True):
        for label in [only] if only else ["yes", "no"]:
            assert scorer(name).parse(answer, label) == WORDS[verdict], (name, label)


def test_the_table_is_large_and_tells_all_rules_apart() -> None:
    assert len({answer for answer, _ in GOLDEN}) >= 60
    columns = {column: [verdicts[column] for _, verdicts in GOLDEN] for column in range(len(COLUMNS))}
    assert all(columns[one] != columns[other] for one in columns for other in range(one))
    assert {rule.name for rule in rules()} == {name for name, _ in COLUMNS}


@pytest.mark.parametrize(("answer", "verdict"), [("Yes", "yes"), ("No", "no"), ("", "unparsable")])
def test_chosen_answers(answer: str, verdict: str) -> None:
    assert scorer("logits").parse(answer, "yes") == scorer("logits").parse(answer, "no") == verdict


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
