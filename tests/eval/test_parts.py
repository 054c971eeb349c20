"""Runs in several processes, in shards, and what goes to the model together."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmattn.errors import MmattnError
from mmattn.eval.asking import Asked, Said, batches, tasks
from mmattn.eval.parts import Part, own_device
from tests.eval.fakes import FakeModel, World
from tests.eval.runs import answers, benchmarks, numbers, run
from tests.eval.test_cli import data, invoke
from tests.eval.test_resume import SlowModel


@pytest.mark.parametrize("size", [1, 4, 5, 7, 100])
def test_questions_about_one_picture_stand_together(size: int, world: World) -> None:
    every = tasks(benchmarks(world), ["greedy", "vcd"])
    found = list(batches(every, size, {}))
    assert Counter(map(id, itertools.chain(*found))) == Counter(map(id, every)), "each once"
    known: set[Asked] = set()
    pieces: Counter[tuple[str, int, str]] = Counter()
    for batch in found:
        assert len({(task.label, task.benchmark.max_new_tokens) for task in batch}) == 1
        assert 1 <= len({task.asked for task in batch} - known) <= size
        known |= {task.asked for task in batch}
        pieces.update({(task.label, task.benchmark.max_new_tokens, task.item.image) for task in batch})
    for (label, longest, image), count in pieces.items():
        mine = [t for t in every if (t.label, t.benchmark.max_new_tokens, t.item.image) == (label, longest, image)]
        distinct = len({task.asked for task in mine})
        assert count == (1 if distinct <= size else -(-distinct // size)), "divided only where it must be"
    if size == 100:  # both splits of POPE about all pictures in one batch
        assert {task.benchmark.name for task in found[0]} == {"pope-random", "pope-popular"}


def test_what_is_known_takes_no_place_in_a_batch(world: World) -> None:
    every = tasks(benchmarks(world)[:1], ["greedy"])
    known = {task.asked: Said("Yes", (1,), "stop") for task in every[:17]}
    assert [len(batch) for batch in batches(every, 4, known)] == [18]


def test_shards_are_put_together(world: World, undisturbed: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "run", json.loads((undisturbed / "results.json").read_text())
    asked = []
    for number in (2, 1, 3):
        model = FakeModel()
        run(world, out, model, shard=Part(number, 3))
        asked += [(method, key) for (method, _), key in zip(model.asked, model.keys, strict=True)]
    assert not (out / "samples.jsonl").exists()
    assert len(set(asked)) == len(asked), "none asked by two"
    last = FakeModel()
    assert numbers(run(world, out, last)) == numbers(expected)
    assert last.calls == 0
    assert answers(out) == answers(undisturbed)


def test_the_commits_of_shards_are_kept(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, commit in ((1, "a"), (2, "b")):
        monkeypatch.setattr("mmattn.eval.provenance.commit", lambda commit=commit: commit)
        run(world, tmp_path, shard=Part(number, 2))
    monkeypatch.setattr("mmattn.eval.provenance.commit", lambda: "c")
    for _ in range(2):
        results = run(world, tmp_path)
        assert (results["commits"], results["commit"]) == (["a", "b", "c"], "c")
    assert json.loads((tmp_path / "run.json").read_text())["commits"] == ["a", "b", "c"]


def test_what_a_missing_shard_leaves_is_asked(world: World, undisturbed: Path, tmp_path: Path) -> None:
    run(world, tmp_path, shard=Part(1, 2))
    model = FakeModel()
    run(world, tmp_path, model)
    whole = FakeModel()
    run(world, tmp_path / "whole", whole)
    assert 0 < len(model.asked) < len(whole.asked)
    assert answers(tmp_path) == answers(undisturbed)


def test_a_shard_of_other_settings_is_refused_or_started_over(world: World, tmp_path: Path) -> None:
    run(world, tmp_path, shard=Part(1, 2), seed=1)
    run(world, tmp_path, shard=Part(2, 2))
    with pytest.raises(MmattnError, match="1-of-2 belongs to a run with other settings"):
        run(world, tmp_path)
    with pytest.raises(MmattnError, match="other settings"):
        run(world, tmp_path, shard=Part(1, 2))
    run(world, tmp_path, shard=Part(1, 2), fresh=True)
    assert run(world, tmp_path)["seed"] == 0
    again = FakeModel()
    run(world, tmp_path, again, fresh=True)
    assert again.calls, "a fresh run forgets the shards, too"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none(text: str) -> None:
    with pytest.raises(MmattnError, match="Cannot read the shard"):
        Part.read(text)


def _member(rank: int, port: int, world: World, out: Path, size: int, model: FakeModel) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    run(world, out, model)
    out.with_suffix(f".{rank}").write_text(json.dumps(model.asked))
    os._exit(0)  # none of pytest's business


def start(world: World, out: Path, size: int = 2, kind: type[FakeModel] = FakeModel) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    members = [fork.Process(target=_member, args=(rank, port, world, out, size, kind())) for rank in range(size)]
    for one in members:
        one.start()
    return members


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_equal_one(world: World, undisturbed: Path, tmp_path: Path) -> None:
    for one in start(world, tmp_path / "run"):
        one.join(60)
        assert one.exitcode == 0
    assert answers(tmp_path / "run") == answers(undisturbed)
    expected = json.loads((undisturbed / "results.json").read_text())
    assert numbers(json.loads((tmp_path / "run" / "results.json").read_text())) == numbers(expected)
    asked = [json.loads((tmp_path / f"run.{rank}").read_text()) for rank in (0, 1)]
    single = FakeModel()
    run(world, tmp_path / "single", single)
    assert all(asked), "both worked"
    assert sorted(map(tuple, asked[0] + asked[1])) == sorted(single.asked)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_that_are_killed_go_on_as_three(world: World, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    members = start(world, out, kind=SlowModel)
    deadline = time.monotonic() + 60
    while not all((f.exists() and f.read_bytes().count(b"\n") > 8) for f in _samples(out)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for one in members:
        os.kill(one.pid, signal.SIGKILL)
        one.join()
    kept = sum(f.read_bytes().count(b"\n") for f in _samples(out))
    for one in start(world, out, size=3):
        one.join(60)
        assert one.exitcode == 0
    assert answers(out) == answers(undisturbed)
    asked = [json.loads((tmp_path / f"run.{rank}").read_text()) for rank in range(3)]
    assert 0 < sum(map(len, asked)) <= len(answers(out)) - kept, "nothing is asked again"


def _samples(out: Path) -> list[Path]:
    return [out / "samples.jsonl", out / "shards" / "2-of-2" / "samples.jsonl"]


def test_shards_on_the_command_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models: list[FakeModel] = []
    monkeypatch.setattr("mmattn.cli.running.load_model", lambda *_: models.append(FakeModel()) or models[-1])
    words = ["pope", *data(world), "--limit", 4, "--out", tmp_path / "run"]
    for shard in ("1/2", "2/2"):
        result = invoke(*words, "--shard", shard)
        assert result.exit_code == 0, result.output
        assert "without --shard" in result.stderr
    assert invoke(*words).stdout == invoke("pope", *data(world), "--limit", 4, "--out", tmp_path / "one").stdout
    assert [model.calls > 0 for model in models] == [True, True, False, True]


def test_a_model_over_several_gpus_or_one_for_each_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(
        "mmattn.cli.running.load_model", lambda *given, **named: loaded.append((given, named)) or FakeModel()
    )
    words = ["pope", *data(world), "--limit", 2, "--out", tmp_path]
    assert invoke(*words, "--device-map", "auto").exit_code == 0
    assert loaded == [(("scenes-llava", None, None), {"device_map": "auto"})]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device(None) is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert own_device("cpu") == "cpu"
    for rank, device in enumerate(("cuda:0", "cuda:1", "cuda:0", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert own_device(None) == own_device("cuda") == device
    refused = invoke(*words, "--device-map", "auto", "--fresh")
    assert "each of several processes wants its own" in str(refused.exception)


def test_accelerate_launch(world: World, tmp_path: Path) -> None:
    """The real launcher, the real model, and no GPU: two processes give the numbers of one."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["-m", "mmattn", "eval"]
    words = ["pope", *map(str, data(world)), "--split", "random", "--limit", "2", "--device", "cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, *words, "--out", str(tmp_path / "two")]
    two = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert two.returncode == 0, two.stderr
    one = invoke(*words, "--out", tmp_path / "one")
    assert numbers(json.loads(two.stdout)) == numbers(json.loads(one.stdout))
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert (tmp_path / "two" / "shards" / "2-of-2" / "samples.jsonl").read_text().count("\n") == 6
