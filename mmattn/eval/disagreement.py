"""How far the rules that read yes or no disagree on the answers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if number == number else None  # NaN has no JSON
