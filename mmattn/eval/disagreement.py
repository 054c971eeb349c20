"""How far the rules that read yes or no disagree on the answers of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmattn.eval.scorers import Scorer, rules
from mmattn.eval.types import Record
from mmattn.eval.yesno import rates, tally

EXAMPLES = 5


def disagreement(records: Sequence[Record], used: Scorer) -> dict[str, Any]:
    """Rates under every rule, and the answers on which they part.

    Args:
        records: answered questions with their gold label in `details`.
        used: the rule of the run, which the others are compared with.

    Returns:
        `scorers`: by rule, its rates, how many answers it calls unparsable and how many it reads unlike `used`;
        `disagree`: answers that not all rules read alike, with the first few as `examples`.
    """
    readers = {rule.name: rule for rule in (used, *rules())}
    verdicts = {
        name: [rule.parse(one.answer, one.details["label"]) for one in records] for name, rule in readers.items()
    }
    table = {}
    for name, said in verdicts.items():
        cells = tally((one.details["label"], verdict) for one, verdict in zip(records, said, strict=True))
        table[name] = {
            **{metric: _plain(value) for metric, value in rates(cells).items()},
            "unparsable": said.count("unparsable"),
            "differs": sum(mine != other for mine, other in zip(said, verdicts[used.name], strict=True)),
        }
    parted = [row for row in range(len(records)) if len({said[row] for said in verdicts.values()}) > 1]
    examples = [
        {
            "id": records[row].id,
            "answer": records[row].answer,
            "verdicts": {name: said[row] for name, said in verdicts.items()},
        }
        for row in parted[:EXAMPLES]
    ]
    return {"answers": len(records), "disagree": len(parted), "scorers": table, "examples": examples}


def told(values: dict[str, Any]) -> list[str]:
    """`disagreement` in a line."""
    if not values["disagree"]:
        return [f"all {len(values['scorers'])} scorers agree on all {values['answers']} answers"] * bool(
            values["answers"]
        )
    accuracies = (
        f"{name} {100 * one['accuracy']:.1f}" + (f" ({one['unparsable']} unparsable)" if one["unparsable"] else "")
        for name, one in values["scorers"].items()
    )
    return [
        f"scorers disagree on {values['disagree']} of {values['answers']} answers; accuracy by scorer: "
        + ", ".join(accuracies)
    ]


def ranking(records: Sequence[Record]) -> float | None:
    """How often a question labelled yes has more of a lead of "Yes" over "No" than one labelled no; ties are half.

    The area under the ROC curve: no threshold between yes and no enters it. None where one label is missing.
    """
    leads: dict[str, list[float]] = {"yes": [], "no": []}
    for record in records:
        yes, no = record.scores.get("Yes"), record.scores.get("No")
        if yes is not None or no is not None:
            lead = math.inf if no is None else -math.inf if yes is None else yes - no
            leads[record.details["label"]].append(lead)
    ours, theirs = np.array(leads["yes"]), np.sort(leads["no"])
    if not len(ours) or not len(theirs):
        return None
    below = (np.searchsorted(theirs, ours, "left") + np.searchsorted(theirs, ours, "right")) / 2
    return float(below.mean() / len(theirs))


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if number == number else None  # NaN has no JSON
