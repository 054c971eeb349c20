"""Runs that are cut off, and folders that are not what they should be."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmattn.errors import MmattnError
from mmattn.eval.store import RunFolder, read_records
from mmattn.eval.types import Record
from tests.eval.fakes import FakeModel, Killed, Spoken, World
from tests.eval.runs import answers, benchmarks, numbers, run


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
    """Twenty real kills of real processes, at moments that no exception handler sees, the last ones included."""
    expected = numbers(json.loads((undisturbed / "results.json").read_text()))
    random = np.random.default_rng(0)
    kills, runs = 0, 0
    while kills < 20:
        out = tmp_path / str(runs)
        child = multiprocessing.get_context("fork").Process(target=_slow_run, args=(world, out))
        child.start()
        child.join(random.uniform(0.02, 0.25))
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:
            assert answers(out) == answers(undisturbed)
            assert numbers(json.loads((out / "results.json").read_text())) == expected
            runs += 1
    assert numbers(run(world, tmp_path / str(runs))) == expected
    assert answers(tmp_path / str(runs)) == answers(undisturbed)
    assert (tmp_path / str(runs) / "samples.jsonl").read_bytes().count(b"\n") == len(answers(undisturbed))


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


def test_any_answer_is_one_line(tmp_path: Path) -> None:
    texts = ["two\nlines\r\n", "\x85 \u2028 \u2029 \x0c", "图片 😀", "half \ud83d", '"quoted" \\', "\x00"]
    records = [Record("b", "m", str(n), "i.png", "p", "done", answer=text) for n, text in enumerate(texts)]
    with RunFolder(tmp_path, {}, None) as folder:
        folder.append(records)
    assert len((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == len(texts)
    assert read_records(tmp_path / "samples.jsonl")[0] == records


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


@pytest.mark.parametrize("name", ["run.json", "samples.jsonl", "results.json"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_asked(
    name: str, fresh: bool, world: World, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    model = FakeModel()
    with pytest.raises(MmattnError, match=f"{name} is a folder"):
        run(world, tmp_path, model, fresh=fresh)
    assert model.calls == 0


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"\xff", b"7", b'{"settings": {}, "commits": 3}'])
def test_a_damaged_head_is_told(raw: bytes, world: World, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(raw)
    with pytest.raises(MmattnError, match=r"run\.json is damaged"):
        run(world, tmp_path)


GOOD_LINE = {"benchmark": "b", "method": "m", "id": "1", "image": "i", "prompt": "p", "status": "done"}


@pytest.mark.parametrize(
    "change",
    [
        {"counts": 7},
        {"counts": {"a": "x"}},
        {"token_ids": ["x"]},
        {"seconds": "1"},
        {"seconds": float("nan")},
        {"counts": {"a": 10**400}},
        {"answer": 5},
        {"image": None},
    ],
)
def test_a_line_of_wrong_types_is_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({**GOOD_LINE, **change}) + "\n" + json.dumps({**GOOD_LINE, "id": "2"}) + "\n")
    with pytest.raises(MmattnError, match="line 1 is damaged"):
        read_records(path)
    path.write_text("[" * 100_000 + "\n" + json.dumps(GOOD_LINE) + "\n")
    with pytest.raises(MmattnError, match="line 1 is damaged"):
        read_records(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_costs_no_answer(tmp_path: Path) -> None:
    record = Record("b", "m", "1", "i.png", "p", "done", answer="yes")
    with (
        pytest.raises(MmattnError, match=r"Cannot write .*samples\.jsonl \(No space left"),
        RunFolder(tmp_path, {}, None) as folder,
        Path("/dev/full").open("ab") as full,
    ):
        assert folder._samples is not None
        os.dup2(full.fileno(), folder._samples.fileno())
        folder.append([record])
    assert folder.records == []
    with RunFolder(tmp_path, {}, None) as folder:
        folder.append([record])
    assert read_records(tmp_path / "samples.jsonl")[0] == [record]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path, {}, None) as folder:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MmattnError, match=r"Cannot write .*results\.json \(No space left on device\)"):
            folder.write("results.json", "{}")
    assert not list(tmp_path.glob(".*.part"))
