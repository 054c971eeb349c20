from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from mmattn.cli import eval as command
from mmattn.cli import running
from mmattn.errors import MmattnError
from tests.eval.fakes import FakeModel, World

APP = typer.Typer()
APP.add_typer(command.app, name="eval")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    model = FakeModel()

    monkeypatch.setattr(running, "load_model", lambda name, device, dtype: model)
    return model


def invoke(*words: object) -> Result:
    return CliRunner().invoke(APP, ["eval", *map(str, words)])


def data(world: World) -> list[object]:
    return ["--annotations", world.instances, "--images", world.images]


def test_pope(world: World, fake: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke("pope", *data(world), "--out", out, "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "pope-adversarial (2 images, 12 questions)" in result.stdout
    assert json.loads((out / "results.json").read_text())["samples"]["pope-random"]["greedy"]["done"] == 12
    assert {name for name, _ in fake.asked} == {"greedy"}


def test_all_writes_the_whole_run_folder(world: World, fake: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*data(world), "--captions", world.captions, "--out", out, "--limit", 3, "--chair-limit", 1]
    result = invoke("all", *words)
    assert result.exit_code == 0, result.output
    for name in ("results.json", "samples.jsonl", "picture.png", "table.md", "run.json"):
        assert (out / name).stat().st_size > 0, name
    assert "vcd - greedy" in result.stdout
    assert "chair (1 image)" in result.stdout
    calls = fake.calls
    assert invoke("all", *words).stdout == result.stdout
    assert fake.calls == calls, "a finished run is shown, not repeated"


def test_the_picture_uses_the_localisation_head_where_one_is_known(
    world: World, fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps: list[object] = []
    monkeypatch.setattr("mmattn.eval.picture.draw", lambda *arguments: maps.append(arguments[-1]))
    invoke("all", *data(world), "--limit", 2, "--out", tmp_path / "a")
    fake.localisation_head = (4, 0)  # type: ignore[attr-defined]
    invoke("all", *data(world), "--limit", 2, "--out", tmp_path / "b")
    assert maps == [None, {"layers": 4, "heads": 0}]


def test_json_is_all_there_is_on_stdout(world: World, fake: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke("chair", *data(world), "--captions", world.captions, "--out", out, "--json")
    assert json.loads(result.stdout) == json.loads((out / "results.json").read_text())


def test_published_questions(world: World, fake: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "coco_pope_random.json"
    line = {"question_id": 1, "image": "001.png", "text": "Is there an oven in the imange?", "label": "no"}
    path.write_text(json.dumps(line) + "\n")
    result = invoke("pope", "--questions", path, "--images", world.images, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    described = json.loads((tmp_path / "run" / "results.json").read_text())["benchmarks"]["pope-coco_pope_random"]
    assert described["misspelt"] == 1


def test_unusable_lines_and_pictures_are_told_with_their_line(world: World, fake: FakeModel, tmp_path: Path) -> None:
    line = {"question_id": 1, "image": "001.png", "text": "Is there a dog in the image?", "label": "no"}
    lines = [line, {**line, "question_id": 2, "image": "gone.png"}, {**line, "label": 7}, line]
    path = tmp_path / "q.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = invoke("pope", "--questions", path, "--images", world.images, "--out", tmp_path / "run")
    assert result.exit_code == 3, result.output
    assert "q.json: 2 unusable, not asked: line 3: no usable 'label'; line 4: repeats question_id 1" in result.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["benchmarks"]["pope-q"]["rejected"]["count"] == 2
    (reason,) = results["samples"]["pope-q"]["greedy"]["reasons"].values()
    assert reason.startswith("q.json line 2: Image file")


def test_answers_by_scores(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chooser(FakeModel):
        def first_token(self, word: str) -> int:
            return len(word)  # Yes and yes 3, No and no 2

        def generate(self, images: Any, prompts: Any, *, scores: list[int], **given: Any) -> Any:  # type: ignore[override]
            assert (scores, given["max_new_tokens"]) == ([3, 2], 1)
            return [type("", (), {"scores": {3: 0, 2: 1}, "token_ids": (), "finish_reason": "length"}) for _ in prompts]

    monkeypatch.setattr(running, "load_model", lambda name, device, dtype: Chooser())
    result = invoke(
        "pope", *data(world), "--split", "random", "--scorer", "logits", "--out", tmp_path / "run", "--json"
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results["metrics"]["pope-random"]["greedy"]["yes_ratio"]["value"] == 0.0
    assert results["model"]["answers"]["tokens"] == {"Yes": [3], "No": [2]}
    assert results["extras"]["pope-random"]["greedy"]["auc"] == 0.5, "all alike"
    (line, *_) = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["scores"] == {"Yes": 0.0, "No": 1.0}


def test_interruption_keeps_the_work_and_says_how_to_go_on(world: World, fake: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fake.dies_in, fake.error = 3, KeyboardInterrupt
    words = ["pope", *data(world), "--out", out, "--batch-size", 4]
    result = invoke(*words)
    assert result.exit_code == 130
    assert "Finished answers are kept" in result.stderr
    assert str(out) in result.stderr
    assert "Traceback" not in result.output
    assert (out / "samples.jsonl").read_text().count("\n") >= 8, "two batches of four; some are asked in two splits"
    fake.dies_in = None
    assert invoke(*words).exit_code == 0
    assert invoke("pope", *data(world), "--out", tmp_path / "other").stdout == invoke(*words).stdout


def test_interruption_of_a_fresh_run_does_not_advise_to_forget_again(
    world: World, fake: FakeModel, tmp_path: Path
) -> None:
    fake.dies_in, fake.error = 3, KeyboardInterrupt
    words = ["pope", *data(world), "--out", tmp_path / "run", "--batch-size", 4]
    assert "without --fresh" in invoke(*words, "--fresh").stderr
    fake.dies_in = fake.calls + 2
    assert "--fresh" not in invoke(*words).stderr


def test_interruption_before_the_first_question_promises_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "load_model", load)
    result = invoke("pope", *data(world), "--out", tmp_path / "run", "--fresh")
    assert result.exit_code == 130
    assert "kept" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pope", "--questions", "q.json", "DATA"], "drop --annotations"),
        (["pope", "--questions", "q.json", "--images", ".", "--split", "random"], "drop --split"),
        (["pope", "--images", "."], "--annotations, which is not given"),
        (["pope", "--annotations", "none.json"], "Add --images"),
        (["pope", "--annotations", "none.json", "--images", "."], "none.json does not exist"),
        (["pope", "--annotations", "none.json", "--images", "nowhere"], "Image folder nowhere does not exist"),
        (["pope", "--questions", "q.json"], "--questions needs the images"),
        (["pope", "DATA", "--split", "randm"], "Did you mean random"),
        (["pope", "DATA", "--split", ","], "No POPE split"),
        (["chair", "DATA", "--prompt", " "], "The prompt is empty"),
        (["chair", "DATA", "--prompt", ""], "The prompt is empty"),
        (["chair", "DATA", "--prompt", "\udcff"], "The prompt is not UTF-8"),
        (["pope", "DATA", "--scorer", "vdc"], "Unknown scorer"),
        (["pope", "DATA", "--method", "gredy"], "Did you mean greedy"),
        (["pope", "DATA", "--method", ""], "No method"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, world: World, fake: FakeModel, tmp_path: Path) -> None:
    given = [part for word in words for part in (data(world) if word == "DATA" else [word])]
    result = invoke(*given, "--out", tmp_path / "run")
    assert isinstance(result.exception, MmattnError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert fake.calls == 0


Spoil = Callable[[Path, dict[str, Any]], object]


def replaced(raw: bytes) -> Spoil:
    return lambda root, _: (root / "instances.json").write_bytes(raw)


def changed(key: str, **values: object) -> Spoil:
    """One entry of the annotation file with other values."""

    def spoil(root: Path, data: dict[str, Any]) -> None:
        data[key][0].update(values)
        (root / "instances.json").write_text(json.dumps(data))

    return spoil


def a_folder(name: str) -> Spoil:
    return lambda root, _: (root / "run" / name).mkdir(parents=True)


def others_captions(root: Path, data: dict[str, Any]) -> None:
    images = [{"id": 1, "file_name": "elsewhere.png"}]
    captions = {"images": images, "annotations": [{"id": 1, "image_id": 1, "caption": "A dog."}]}
    (root / "captions.json").write_text(json.dumps(captions))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replaced(b"[" * 100_000), "instances.json is not valid JSON"),
        (replaced(b"\xff"), "instances.json is not valid JSON"),
        (changed("images", file_name="\ud800.png"), "'file_name' has half a surrogate pair"),
        (changed("annotations", bbox=[10**400, 0, 1, 1]), "'bbox' is not four numbers"),
        (changed("annotations", bbox=[0, 0, float("inf"), 1]), "'bbox' is not four numbers"),
        (changed("annotations", bbox=[0, 0, float("nan"), 1]), "'bbox' is not four numbers"),
        (others_captions, "captions.json has no caption for any image of instances.json"),
        (a_folder("run.json"), "run.json is a folder"),
        (a_folder("results.json"), "results.json is a folder"),
        (a_folder("table.md"), "Cannot write"),
        (lambda root, _: (root / "run").write_text(""), "Cannot write to the run folder"),
    ],
)
def test_damaged_files_are_one_line(spoil: Spoil, message: str, world: World, fake: FakeModel, tmp_path: Path) -> None:
    for file in (world.instances, world.captions):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path, json.loads(world.instances.read_text()))
    files = ["--annotations", tmp_path / "instances.json", "--captions", tmp_path / "captions.json"]
    result = invoke("chair", *files, "--images", world.images, "--out", tmp_path / "run", "--limit", 2)
    assert isinstance(result.exception, MmattnError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_split_named_twice_is_asked_once(world: World, fake: FakeModel, tmp_path: Path) -> None:
    result = invoke("pope", *data(world), "--split", "random,random", "--limit", 1, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.exception


@pytest.mark.parametrize("error", [MmattnError("Cannot look", "Look away."), RuntimeError("Cannot look\nat all")])
def test_numbers_are_not_lost_over_the_picture(
    error: Exception, world: World, fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(*_: object) -> None:
        raise error

    monkeypatch.setattr(fake, "attend", attend)
    result = invoke("pope", *data(world), "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "accuracy" in result.stdout
    assert "No picture: Cannot look" in result.stderr


def test_missing_images_are_told_on_stderr(world: World, fake: FakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in list(world.images.iterdir())[:8]:
        (folder / path.name).write_bytes(path.read_bytes())
    words = ["--annotations", world.instances, "--images", folder, "--out", tmp_path / "run"]
    result = invoke("chair", *words)
    assert result.exit_code == 3
    assert "CHAIR_i" in result.stdout, "the table is printed all the same"
    assert (tmp_path / "run" / "table.md").exists()
    assert "4 questions could not be asked" in result.stderr
    assert "exit status 3" in result.stderr
    assert "No --captions" in result.stderr
    as_json = invoke("chair", *words, "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["samples"]["chair"]["greedy"]["failed"] == 4


@pytest.mark.parametrize("name", ["pope", "chair", "all"])
def test_help_tells_the_status_of_an_incomplete_run(name: str) -> None:
    assert "status is 3" in " ".join(invoke(name, "--help").stdout.split())
