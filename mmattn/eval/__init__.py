"""Benchmarks whose numbers can be traced: POPE, CHAIR, and a runner that knows neither.

In short:

    instances = load_instances(annotations)
    pope = Pope("random", build(instances, "random"), images, instances=instances)
    results = evaluate(model, [pope], ["greedy", "vcd"], Path("runs/mine"))

The command line is in `mmattn.cli.eval`.
"""

from mmattn.eval.chair import Chair
from mmattn.eval.choices import YES_NO, ByScores
from mmattn.eval.coco import Captions, Instances, load_captions, load_instances
from mmattn.eval.pope import Pope
from mmattn.eval.questions import STRATEGIES, Question, build, dumps, load_questions, read
from mmattn.eval.runner import evaluate
from mmattn.eval.scorers import Scorer, register, scorer, scorers
from mmattn.eval.types import Benchmark, Item, Record, Score

__all__ = [
    "STRATEGIES",
    "YES_NO",
    "Benchmark",
    "ByScores",
    "Captions",
    "Chair",
    "Instances",
    "Item",
    "Pope",
    "Question",
    "Record",
    "Score",
    "Scorer",
    "build",
    "dumps",
    "evaluate",
    "load_captions",
    "load_instances",
    "load_questions",
    "read",
    "register",
    "scorer",
    "scorers",
]
