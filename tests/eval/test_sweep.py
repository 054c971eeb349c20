"""Sweeps: what is tried, what is chosen, and that nothing is chosen on what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmattn import scenes
from mmattn.decoding import resolve
from mmattn.errors import MmattnError
from mmattn.eval.runner import half_of
from mmattn.eval.store import read_records
from mmattn.eval.sweep import best, grid, plan
from tests.eval.fakes import FakeModel, Spoken, World
from tests.eval.runs import benchmarks, run
from tests.eval.test_cli import data, invoke


def labels(methods: Sequence[Any]) -> list[str]:
    return [one.label for one in methods]


def test_every_combination_of_every_method_that_has_them() -> None:
    found = plan([resolve(name) for name in ("greedy", "vcd", "iava")], grid(["alpha=0,0.5", "beta=0.1, 0.2"]))
    assert labels(found.others) == ["greedy"]
    assert labels(found.variants["vcd"]) == [
        replace(resolve("vcd"), alpha=alpha, beta=beta).label for alpha in (0, 0.5) for beta in (0.1, 0.2)
    ]
    assert labels(found.tuning)[0] == "greedy"
    assert len(found.tuning) == 1 + sum(map(len, found.variants.values()))


def test_alone_it_is_compared_with_plain_decoding() -> None:
    assert labels(plan([resolve("vcd")], grid(["alpha=2"])).others) == ["greedy"]


def test_a_part_of_a_joined_method_is_swept() -> None:
    found = plan([resolve("boost(strength=3)+vcd")], grid(["alpha=0.5,2"]))
    (variants,) = found.variants.values()
    assert [one.settings()["parts"][1]["alpha"] for one in variants] == [0.5, 2]
    assert {one.settings()["parts"][0]["strength"] for one in variants} == {3}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["alpha"], "names no values"),
        (["alpha="], "names no values"),
        (["=1"], "names no values"),
        (["alpha=a,b"], "Cannot read the sweep"),
        (["alpha=1;2"], "Cannot read the sweep"),
        (["alpha=1,1"], "repeats a value"),
        (["alpha=1", "alpha=2"], "given twice"),
        (["alhpa=1"], "Did you mean alpha"),
        (["alpha=-1"], "alpha"),
    ],
)
def test_mistakes(texts: list[str], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        plan([resolve("vcd")], grid(texts))


def results(**values: Any) -> dict[str, Any]:
    """Metrics of two benchmarks, and of one that does not know the metric."""
    metrics = {
        name: {
            label: {"f1": {"value": pair[place]}, "chair_i": {"value": pair[place]}} for label, pair in values.items()
        }
        for place, name in enumerate(("a", "b"))
    }
    return {"metrics": {**metrics, "other": {label: {"accuracy": {"value": 1.0}} for label in values}}}


def test_the_best_has_the_best_mean() -> None:
    weak, strong = resolve("vcd(alpha=0.5)"), resolve("vcd(alpha=2)")
    variants = {"vcd": [weak, strong]}
    pairs: Any = {weak.label: (0.5, 0.7), strong.label: (0.9, 0.2)}
    assert best(results(**pairs), variants) == ([weak], {"vcd": {weak.label: 0.6, strong.label: pytest.approx(0.55)}})
    assert best(results(**pairs), variants, "chair_i")[0] == [strong], "less is better"
    assert best(results(**{weak.label: (0.5, None), strong.label: (0.1, 0.1)}), variants)[0] == [strong]
    assert best(results(**{weak.label: (0.5, 0.5), strong.label: (0.5, 0.5)}), variants)[0] == [weak], "the first"
    with pytest.raises(MmattnError, match="Did you mean f1"):
        best(results(**pairs), variants, "f2")


def test_halves_share_no_picture_and_leave_none_out(world: World, tmp_path: Path) -> None:
    asked = benchmarks(world, limit=None)
    both = {}
    for half in ("tune", "held-out"):
        told = run(world, tmp_path / half, asked=asked, half=half)
        records = read_records(tmp_path / half / "samples.jsonl")[0]
        both[half] = {record.image for record in records}
        for bench in asked:
            mine = {(one.image, one.id) for one in records if one.benchmark == bench.name}
            assert told["benchmarks"][bench.name]["images"] == len({image for image, _ in mine})
            assert told["benchmarks"][bench.name].get("questions", len(mine)) == len(mine)
            assert told["benchmarks"][bench.name]["half"] == half
    assert both["tune"] | both["held-out"] == {path.name for path in world.images.iterdir()}
    assert not both["tune"] & both["held-out"]
    with pytest.raises(MmattnError, match="other settings"):
        run(world, tmp_path / "tune", asked=asked, half="held-out")


class Tuned(FakeModel):
    """Right in POPE if alpha is 2 and the picture is for tuning, or 0.5 and it is not."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.seen: list[tuple[str, str]] = []

    def generate(self, images: Any, prompts: Any, *, method: Any, keys: Any, **_: Any) -> list[Spoken]:
        self.calls += 1
        said = []
        for key, prompt in zip(keys, prompts, strict=True):
            image = key.split("\0")[0]
            self.seen.append((image, method.label))
            thing = prompt.removeprefix("Is there ").split(" in the")[0].split(" ", 1)[1]
            truth = thing in self.world.objects[image]
            right = getattr(method, "alpha", None) == (2 if half_of(image) == "tune" else 0.5)
            said.append(Spoken("Yes" if truth == right else "No", (1,)))
        return said


def test_the_choice_is_made_on_other_pictures_than_the_report(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Tuned(world)
    monkeypatch.setattr("mmattn.cli.running.load_model", lambda *_: model)
    words = ["pope", *data(world), "--method", "greedy,vcd", "--sweep", "alpha=0.5,2", "--out", tmp_path / "run"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert kept["chosen"]["vcd"]["alpha"] == 2
    assert kept["mean"]["vcd"] == {"vcd(alpha=0.5)": pytest.approx(0), "vcd(alpha=2)": pytest.approx(1)}
    report = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(report["methods"]) == ["greedy", "vcd(alpha=2)"]
    assert report["metrics"]["pope-random"]["vcd(alpha=2)"]["accuracy"]["value"] == 0, "the truth about the others"
    assert {label for image, label in model.seen if half_of(image) == "held-out"} == {"greedy", "vcd(alpha=2)"}
    assert (tmp_path / "run" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "How the hyper-parameters were chosen" in (tmp_path / "run" / "report.html").read_text()
    assert "* vcd(alpha=2): f1 1.0000" in result.stderr
    calls = model.calls
    assert invoke(*words).stdout == result.stdout
    assert model.calls == calls, "a finished sweep is shown, not repeated"


def test_the_scenes_have_pictures_for_tuning(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def dataset(part: str) -> Any:
        asked.append(part)
        return SimpleNamespace(instances=world.instances, captions=world.captions, images=world.images)

    monkeypatch.setattr(scenes, "dataset", dataset)
    monkeypatch.setattr("mmattn.cli.running.load_model", lambda *_: FakeModel())
    result = invoke("chair", "--method", "vcd", "--sweep", "alpha=1,2", "--out", tmp_path, "--limit", 4)
    assert result.exit_code == 0, result.output
    assert asked == ["val", "tune"]
    assert json.loads((tmp_path / "results.json").read_text())["benchmarks"]["chair"]["images"] == 4
    assert "half" not in json.loads((tmp_path / "results.json").read_text())["benchmarks"]["chair"]


def test_a_sweep_in_shards_is_refused(world: World, tmp_path: Path) -> None:
    result = invoke("pope", *data(world), "--method", "vcd", "--sweep", "alpha=1", "--shard", "1/2", "--out", tmp_path)
    assert "no run in shards" in str(result.exception)
