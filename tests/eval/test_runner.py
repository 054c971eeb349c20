from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mmattn
from mmattn.errors import MmattnError
from mmattn.eval import Benchmark, Pope, build, evaluate, load_instances
from mmattn.eval.picture import choose, draw
from mmattn.eval.report import failures, markdown
from mmattn.eval.store import read_records
from tests.eval.fakes import FakeModel, World
from tests.eval.runs import METHODS, answers, benchmarks, numbers, run


def test_a_run_asks_everything_once(undisturbed: Path) -> None:
    lines = answers(undisturbed)
    assert len(lines) == 2 * (18 + 18 + 3)
    assert len({(line["benchmark"], line["method"], line["id"]) for line in lines}) == len(lines)
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["samples"]["pope-random"]["greedy"] == {"done": 18, "failed": 0, "reasons": {}}
    assert results["methods"]["greedy"] == {"name": "greedy"}
    assert results["methods"]["vcd"]["alpha"] > 0, "hyper-parameters are written out"
    assert results["model"] == {"model": "fake", "dtype": "float32"}
    assert {"python", "torch", "transformers", "mmattn", "pillow"} <= results["versions"].keys()
    assert results["benchmarks"]["pope-random"]["scorer"] == {
        "name": "official", "version": "1", "source": "AoiDragon/POPE evaluate.py, 2025-08"
    }  # fmt: skip
    assert list(results["metrics"]["chair"]["vcd"]) == ["chair_i", "chair_s", "recall", "precision", "f1", "length"]
    value = {method: results["metrics"]["pope-random"][method]["accuracy"]["value"] for method in METHODS}
    gap = results["differences"]["metrics"]["pope-random"]["vcd"]["accuracy"]["value"]
    assert results["differences"]["from"] == "greedy"
    assert gap == pytest.approx(value["vcd"] - value["greedy"]) != 0
    assert (undisturbed / "questions-pope-random.jsonl").exists()


def test_two_runs_give_the_same_numbers(world: World, undisturbed: Path, tmp_path: Path) -> None:
    first = json.loads((undisturbed / "results.json").read_text())
    second = run(world, tmp_path / "again", batch_size=7)
    assert numbers(first) == numbers(second)
    assert answers(undisturbed) == answers(tmp_path / "again")
    assert numbers(run(world, tmp_path / "again")) == numbers(first), "a finished folder is read, not asked again"


def test_results_are_strict_json(undisturbed: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((undisturbed / "results.json").read_text(), parse_constant=refuse)


def test_a_question_that_two_lists_share_is_asked_once(world: World, tmp_path: Path) -> None:
    model = FakeModel()
    run(world, tmp_path / "run", model)
    lines = [line for line in answers(tmp_path / "run") if line["method"] == "greedy"]
    assert len(model.asked) / 2 == len({(line["image"], line["prompt"]) for line in lines}) < len(lines)


def test_missing_images_are_named_and_tried_again(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = list(dict.fromkeys(q.image for q in build(load_instances(world.instances), "random")))[:3]
    for name in names[1:]:
        (folder / name).write_bytes((world.images / name).read_bytes())
    (folder / names[2]).write_bytes(b"no picture")
    data = load_instances(world.instances)
    asked: list[Benchmark] = [Pope("random", build(data, "random"), folder, instances=data, limit=3)]
    out = tmp_path / "run"
    results = run(world, out, asked=asked)
    status = results["samples"]["pope-random"]["greedy"]
    assert (status["done"], status["failed"]) == (6, 12)
    assert "does not exist" in status["reasons"]["1"]
    assert "24 questions could not be asked" in failures(results)
    lines = [line for line in answers(out) if line["image"] == names[0]]
    assert {line["status"] for line in lines} == {"failed"}
    for name in names:
        (folder / name).write_bytes((world.images / name).read_bytes())
    repaired = run(world, out, asked=asked)
    assert repaired["samples"]["pope-random"]["greedy"] == {"done": 18, "failed": 0, "reasons": {}}
    assert numbers(repaired) == numbers(run(world, tmp_path / "clean", asked=asked))


def test_a_run_without_any_usable_image_is_an_error(world: World, tmp_path: Path) -> None:
    asked: list[Benchmark] = [Pope("r", build(load_instances(world.instances), "random"), tmp_path, limit=1)]
    with pytest.raises(MmattnError, match=r"No question could be asked.*does not exist"):
        run(world, tmp_path / "run", asked=asked)


@pytest.mark.parametrize(
    ("methods", "message"),
    [([], "No method"), (["greedy", "greedy"], "given twice"), (["gredy"], "Unknown method")],
)
def test_method_lists(methods: list[str], message: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=message):
        evaluate(FakeModel(), benchmarks(world), methods, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_one_method_with_several_settings(world: World, tmp_path: Path) -> None:
    asked = benchmarks(world)[:1]
    results = evaluate(FakeModel(), asked, ["vcd", "vcd(alpha=0.5)"], tmp_path / "run", progress=False)
    assert list(results["metrics"]["pope-random"]) == ["vcd", "vcd(alpha=0.5)"]


def test_bad_calls(world: World, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match="Batch size 0"):
        run(world, tmp_path / "run", batch_size=0)
    with pytest.raises(MmattnError, match="given twice"):
        run(world, tmp_path / "run", asked=[*benchmarks(world), *benchmarks(world)])


def test_a_real_model_gives_the_same_in_any_batch(vlm: mmattn.VLM, world: World, tmp_path: Path) -> None:
    asked = benchmarks(world, limit=1)
    one, many = (
        evaluate(vlm, asked, METHODS, tmp_path / str(size), batch_size=size, progress=False) for size in (1, 5)
    )
    assert numbers(one) == numbers(many)
    assert answers(tmp_path / "1") == answers(tmp_path / "5")
    assert one["model"]["family"] == "llava"


def test_equal_pictures_in_two_files_do_not_tie_answers_to_the_batch(
    vlm: mmattn.VLM, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random streams are named by file and prompt: a count of equal samples in a call would follow the batches."""
    pixels = next(world.images.iterdir()).read_bytes()
    for image in world.images.iterdir():
        (tmp_path / image.name).write_bytes(pixels)
    data = load_instances(world.instances)
    asked: list[Benchmark] = [Pope("random", build(data, "random"), tmp_path, instances=data, limit=4)]
    generate = vlm.generate
    monkeypatch.setattr(vlm, "generate", lambda *given, **named: generate(*given, **named, do_sample=True))
    for size in (1, 16):
        evaluate(vlm, asked, ["greedy"], tmp_path / str(size), batch_size=size, progress=False)
    assert answers(tmp_path / "1") == answers(tmp_path / "16")
    model = FakeModel()
    run(world, tmp_path / "fake", model, asked=asked)
    assert len(set(model.keys)) == len(model.keys) / len(METHODS) == 24


def share(meta: Mapping[str, Any]) -> float:
    """Part of the 40 x 30 picture that the one box covers."""
    boxes = meta.get("boxes", ())
    return (boxes[0][2] - boxes[0][0]) * (boxes[0][3] - boxes[0][1]) / 1200 if len(boxes) == 1 else 0.0


def test_the_picture_is_of_a_right_answer(world: World, undisturbed: Path, tmp_path: Path) -> None:
    asked, records = benchmarks(world), read_records(undisturbed / "samples.jsonl")[0]
    chosen = choose(asked, records, "greedy")
    assert chosen is not None
    assert chosen == choose(asked, reversed(records), "greedy"), "whatever the order of the file"
    item, record = chosen
    assert record.verdict == "yes" == item.meta["label"]
    assert len(item.meta["boxes"]) == 1
    right = {(r.benchmark, r.id) for r in records if r.method == "greedy" and r.verdict == "yes"}
    others = [
        share(other.meta)
        for bench in asked[:2]
        for other in map(bench.item, range(len(bench)))
        if other.meta["label"] == "yes" and (bench.name, other.id) in right
    ]
    eligible = [one for one in others if 0.02 <= one <= 0.25]
    assert share(item.meta) == min(eligible, key=lambda one: abs(one - 0.08))
    assert len(set(eligible)) > 1
    assert choose(asked, [], "greedy") is None
    assert draw(FakeModel(), item, record, tmp_path / "p.png").stat().st_size > 1000


def test_the_table_has_every_number(undisturbed: Path) -> None:
    text = markdown(json.loads((undisturbed / "results.json").read_text()))
    assert "| metric | greedy | vcd | vcd - greedy |" in text
    for word in ("accuracy", "false-yes rate", "CHAIR_i", "recall", "F1", "length in words", "bootstrap"):
        assert word in text
    assert "nan" not in text.lower()
