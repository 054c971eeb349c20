"""`mmattn eval` on published files: each command from the file to the answers."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from mmattn.cli import published, running
from mmattn.eval.further import notes
from mmattn.eval.mmhal import MmHal, load_mmhal
from mmattn.eval.published import OPENERS
from tests.eval.fakes import FakeModel, write
from tests.eval.outcomes import picture, records_of, values_of
from tests.eval.test_amber import folder as amber_folder
from tests.eval.test_hallusion import entry as hallusion_entry
from tests.eval.test_mmbench import row, table
from tests.eval.test_textvqa import entry as textvqa_entry

APP = typer.Typer()
published.register(APP)

MMHAL = {
    "question_type": "attribute",
    "question_topic": "object",
    "image_id": "a1",
    "image_src": "https://example.org/pictures/a1_o.jpg",
    "image_content": ["Dog"],
    "question": "What colour is the dog?",
    "gt_answer": "Red.",
    "model_answer": "",
}


def invoke(*words: object) -> Result:
    return CliRunner().invoke(APP, [*map(str, words)])


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    model = FakeModel()
    monkeypatch.setattr(running, "load_model", lambda name, device, dtype: model)
    return model


def data_of(kind: str, root: Path) -> list[object]:
    """A small file of that kind, and where its pictures are."""
    images = root / "images"
    if kind == "mme":
        picture(root / "existence" / "a.jpg")
        (root / "existence" / "a.txt").write_text("Is it there?\tYes\nIs it gone?\tNo\n")
        return [root]
    if kind == "amber":
        for number in (1, 2):
            picture(images / f"AMBER_{number}.jpg")
        return [amber_folder(root), "--images", images]
    if kind == "hallusion":
        picture(images / "VD/illusion/0_0.png")
        return [write(root / "h.json", [hallusion_entry(0, 0, "1")]), "--images", images]
    if kind == "mmhal":
        picture(images / "a1_o.jpg")
        return [write(root / "response_template.json", [MMHAL]), "--images", images]
    if kind == "textvqa":
        picture(images / "im1.jpg")
        return [write(root / "t.json", {"data": [textvqa_entry(1)]}), "--images", images]
    import base64

    held = base64.b64encode(picture(root / "p.png").read_bytes()).decode()
    return [table(root / "m.tsv", [row(1, "A", held)])]


def test_each_kind_is_known() -> None:
    assert set(published.HELP) == set(OPENERS)


@pytest.mark.parametrize("kind", OPENERS)
def test_a_run_of_each_kind(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [kind, *data_of(kind, tmp_path), "--method", "greedy,vcd", "--out", out]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    ((name, samples),) = results["samples"].items()
    assert samples["greedy"]["failed"] == 0
    assert results["benchmarks"][name]["rejected"]["count"] == 0
    assert list((out / "answers" / f"{name}-greedy").iterdir())
    assert list((out / "answers" / f"{name}-vcd").iterdir())
    assert (out / f"questions-{name}.jsonl").stat().st_size
    again = invoke(*words)
    assert again.stdout == result.stdout
    page = (out / "report.html").read_text()
    assert all(line in html.unescape(page) for line in notes(results))


def test_unusable_entries_and_missing_pictures_end_with_status_3(tmp_path: Path) -> None:
    images = tmp_path / "images"
    picture(images / "im1.jpg")
    path = write(tmp_path / "t.json", {"data": [textvqa_entry(1), textvqa_entry(1), textvqa_entry(2)]})
    result = invoke("textvqa", path, "--images", images, "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "t.json: 1 unusable, not asked: entry 2: repeats question_id 1 of entry 1" in result.stderr
    assert "t.json entry 3: Image file" in result.stderr
    assert "entry 2: repeats question_id 1" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["textvqa", "t.json"], "textvqa needs the pictures"),
        (["textvqa", "t.json", "--images", "nowhere"], "nowhere does not exist"),
        (["mme", "m", "--scorer", "official"], "mme has one rule of its own"),
        (["mme", "nowhere"], "Folder nowhere does not exist"),
        (["amber", "nowhere", "--images", ".", "--scorer", "logits"], "AMBER also asks for descriptions"),
        (["hallusion", "nowhere", "--images", ".", "--scorer", "ofical"], "Did you mean official"),
    ],
)
def test_mistakes_in_the_call(words: list[str], message: str) -> None:
    result = invoke(*words)
    assert result.exit_code != 0
    assert message in str(result.exception)


def test_a_damaged_picture_is_told_with_its_entry(tmp_path: Path) -> None:
    words = data_of("hallusion", tmp_path)
    (tmp_path / "images/VD/illusion/0_0.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    good = hallusion_entry(1, 0, "1")
    picture(tmp_path / "images/VD/illusion/0_1.png")
    write(tmp_path / "h.json", [hallusion_entry(0, 0, "1"), good])
    out = tmp_path / "run"
    result = invoke("hallusion", *words, "--scorer", "official", "--out", out)
    assert result.exit_code == 3
    results = json.loads((out / "results.json").read_text())
    (reason,) = results["samples"]["hallusionbench"]["greedy"]["reasons"].values()
    assert reason.startswith("h.json entry 1: ")
    assert "0_0.png" in reason
    assert results["benchmarks"]["hallusionbench"]["scorer"]["name"] == "official"


def test_mmhal_fills_the_template_in(tmp_path: Path) -> None:
    bench = MmHal(load_mmhal(write(tmp_path / "r.json", [MMHAL, {**MMHAL, "question": "Why?"}, MMHAL])), tmp_path)
    assert bench.describe()["rejected"]["entries"][0].startswith("entry 3: repeats the question")
    answers = ["It is red.", "No reason"]
    assert values_of(bench, answers) == {"length": 2.5}
    filled: list[dict[str, Any]] = json.loads(bench.answers(records_of(bench, answers))["response.json"])
    assert filled[0] == {**MMHAL, "model_answer": "It is red."}
