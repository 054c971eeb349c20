from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import mmattn
from mmattn.errors import MmattnError
from mmattn.eval import Benchmark, Chair, Pope, build, evaluate, load_captions, load_instances
from mmattn.eval.picture import choose, draw
from mmattn.eval.report import failures, markdown
from mmattn.eval.store import RunFolder, read_records
from tests.eval.fakes import FakeModel, Killed, Spoken, World

METHODS = ("greedy", "vcd")


def benchmarks(world: World, limit: int | None = 3) -> list[Benchmark]:
    data = load_instances(world.instances)
    pope = [
        Pope(split, build(data, split), world.images, instances=data, limit=limit) for split in ("random", "popular")
    ]
    return [*pope, Chair(data, load_captions(world.captions), world.images, limit=limit)]


def run(world: World, out: Path, model: FakeModel | None = None, **options: Any) -> dict[str, Any]:
    asked = options.pop("asked", None) or benchmarks(world)
    options = {"batch_size": 4, "progress": False, **options}
    return evaluate(model or FakeModel(), asked, METHODS, out, **options)


def answers(out: Path) -> list[dict[str, Any]]:
    """The samples without what may differ between runs."""
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "timing"}


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(world, out)
    return out


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
    assert "accuracy" in results["differences"]["metrics"]["pope-random"]["vcd"]
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


def test_resume_after_a_cut_at_every_byte_of_the_last_lines(world: World, undisturbed: Path, tmp_path: Path) -> None:
    whole = (undisturbed / "samples.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    start = len(whole) - len(lines[-1]) - len(lines[-2])
    expected = json.loads((undisturbed / "results.json").read_text())
    cuts = [0, 1, len(lines[0]) - 1, len(lines[0]), len(lines[0]) + 5, *range(start, len(whole), 97), len(whole) - 1]
    for cut in cuts:
        out = tmp_path / str(cut)
        out.mkdir()
        (out / "run.json").write_bytes((undisturbed / "run.json").read_bytes())
        (out / "samples.jsonl").write_bytes(whole[:cut])
        assert numbers(run(world, out)) == numbers(expected), cut
        assert answers(out) == answers(undisturbed), cut


def test_resume_after_a_death_in_every_call(world: World, undisturbed: Path, tmp_path: Path) -> None:
    counter = FakeModel()
    run(world, tmp_path / "count", counter)
    for call in range(1, counter.calls + 1):
        out = tmp_path / str(call)
        with pytest.raises(Killed):
            run(world, out, FakeModel(dies_in=call))
        assert not (out / "results.json").exists()
        run(world, out)
        assert answers(out) == answers(undisturbed), call


def test_a_run_that_dies_again_and_again(world: World, undisturbed: Path, tmp_path: Path) -> None:
    """One batch of progress each time must be enough."""
    deaths = 0
    while not (tmp_path / "run" / "results.json").exists():
        try:
            run(world, tmp_path / "run", FakeModel(dies_in=2))
        except Killed:
            deaths += 1
        assert deaths < 50
    assert deaths > 10
    assert answers(tmp_path / "run") == answers(undisturbed)


class SlowModel(FakeModel):
    def generate(self, *args: Any, **options: Any) -> list[Spoken]:
        time.sleep(0.01)
        return super().generate(*args, **options)


def _slow_run(world: World, out: Path) -> None:
    run(world, out, SlowModel(), batch_size=2)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_resume_after_sigkill(world: World, undisturbed: Path, tmp_path: Path) -> None:
    """A real kill of a real process, at moments that no exception handler sees."""
    out, samples = tmp_path / "run", tmp_path / "run" / "samples.jsonl"
    total = len(answers(undisturbed))
    for lines in (5, 23, 48):
        child = multiprocessing.get_context("fork").Process(target=_slow_run, args=(world, out))
        child.start()
        while child.is_alive() and (not samples.exists() or samples.read_bytes().count(b"\n") < lines):
            time.sleep(0.002)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert lines <= samples.read_bytes().count(b"\n") < total, "killed in the middle"
    run(world, out)
    assert answers(out) == answers(undisturbed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"model": FakeModel(name="other")}, 'model.model: "fake" there, "other" now'),
        ({"limit": 2}, "benchmarks.pope-random"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    change: dict[str, Any], message: str, world: World, undisturbed: Path
) -> None:
    if "limit" in change:
        change = {"asked": benchmarks(world, change["limit"])}
    before = (undisturbed / "samples.jsonl").read_bytes()
    with pytest.raises(MmattnError, match=message) as caught:
        run(world, undisturbed, **change)
    assert "--out" in caught.value.remedy
    assert "--fresh" in caught.value.remedy
    assert (undisturbed / "samples.jsonl").read_bytes() == before


def test_fresh_forgets(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world, out)
    model = FakeModel()
    run(world, out, model, seed=1, fresh=True)
    assert model.calls > 0
    assert json.loads((out / "results.json").read_text())["seed"] == 1


def test_damage_in_the_middle_is_an_error(world: World, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_bytes((undisturbed / "run.json").read_bytes())
    lines = (undisturbed / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (out / "samples.jsonl").write_bytes(b"".join([lines[0], b'{"half": \n', *lines[1:]]))
    with pytest.raises(MmattnError, match="line 2 is damaged"):
        run(world, out)
    (out / "samples.jsonl").write_bytes(b"".join([*lines, lines[4]]))
    with pytest.raises(MmattnError, match="repeats pope-random greedy 5"):
        run(world, out)
    (out / "run.json").unlink()
    with pytest.raises(MmattnError, match=r"no run\.json"):
        run(world, out)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run", {}, None),
        pytest.raises(MmattnError, match="Another run is writing"),
        RunFolder(tmp_path / "run", {}, None),
    ):
        pass
    with RunFolder(tmp_path / "run", {}, None):
        pass  # released


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MmattnError, match="Cannot write to the run folder"), RunFolder(tmp_path / "file", {}, None):
        pass


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


def test_the_picture_is_of_a_right_answer(world: World, undisturbed: Path, tmp_path: Path) -> None:
    asked, records = benchmarks(world), read_records(undisturbed / "samples.jsonl")[0]
    chosen = choose(asked, records, "greedy")
    assert chosen is not None
    assert chosen == choose(asked, reversed(records), "greedy"), "whatever the order of the file"
    item, record = chosen
    assert record.verdict == "yes" == item.meta["label"]
    assert len(item.meta["boxes"]) == 1
    assert choose(asked, [], "greedy") is None
    assert draw(FakeModel(), item, record, tmp_path / "p.png").stat().st_size > 1000


def test_the_table_has_every_number(undisturbed: Path) -> None:
    text = markdown(json.loads((undisturbed / "results.json").read_text()))
    assert "| metric | greedy | vcd | vcd - greedy |" in text
    for word in ("accuracy", "false-yes rate", "CHAIR_i", "recall", "F1", "length in words", "bootstrap"):
        assert word in text
    assert "nan" not in text.lower()
