"""Signals, detectors and places on the command line, on a small set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import mmattn
from mmattn import cli
from mmattn.cli import options
from mmattn.signals import Detector
from tests.tiny import tiny_llava

CAPTION = "a dog and a cup"


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> mmattn.VLM:
    """A tiny model that the commands load, and that says the same of every picture."""
    vlm = mmattn.wrap(*tiny_llava())
    ids = tuple(vlm.adapter.tokenizer(CAPTION, add_special_tokens=False)["input_ids"])

    def generate(images: Any, prompts: Any, **_: Any) -> list[mmattn.Generation]:
        count = 1 if isinstance(prompts, str) else len(prompts)
        return [mmattn.Generation(CAPTION, ids, "stop")] * count

    monkeypatch.setattr(vlm, "generate", generate)
    monkeypatch.setattr(options, "load_model", lambda *_, **__: vlm)
    return vlm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of which every other one shows a cup, and all show a dog."""
    random = np.random.default_rng(1)
    names = [f"{index}.png" for index in range(8)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    shown = [(index, kind) for index in range(8) for kind in (1, 2) if kind == 1 or index % 2]
    instances = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}],
        "annotations": [
            {"id": number, "image_id": index, "category_id": kind, "bbox": [0, 0, 30, 30]}
            for number, (index, kind) in enumerate(shown)
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def _call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)


def test_words_of_an_answer(talking: mmattn.VLM, folder: Path) -> None:
    command = ("attend", folder / "0.png", "-p", "what?", "--signals", "--out", folder / "a.png")
    told = json.loads(_call(*command, "--json").stdout)
    assert [word["text"] for word in told["words"]] == CAPTION.split()
    word = told["words"][1]
    assert 0 <= word["place"][0] <= 80
    assert 0 <= word["place"][1] <= 60
    expected = talking.signals(folder / "0.png", "what?").words()[1]
    assert word["image"] == pytest.approx(expected.image)
    lines = _call(*command).stdout.splitlines()
    assert len(lines) == 4 + len(CAPTION.split())
    assert lines[5].startswith("dog ")


def test_a_detector_is_trained_scored_and_guides(talking: mmattn.VLM, folder: Path) -> None:
    data = ("--annotations", folder / "instances.json", "--images", folder, "--count", 8, "--sampled", 0, "--json")
    trained = json.loads(_call("detector", "train", *data, "--out", folder / "d.json").stdout)
    assert (trained["mentions"], trained["hallucinated"], trained["pictures"]) == (16, 4, 8)
    detector = Detector.load(folder / "d.json")
    assert list(detector.signals) == trained["signals"]
    assert detector.told["set"] == "instances"
    scored = json.loads(_call("detector", "score", *data, "--detector", folder / "d.json").stdout)
    assert scored["auroc"]["detector"]["value"] > 0.5
    assert set(scored["auroc"]) == {"detector", "probability", "mean lookback", "mean image", "divergence"}
    said = _call("detector", "score", *data[:-1], "--detector", folder / "d.json").stdout
    assert "4 of 16 words for objects, on 8 pictures, are wrong." in said
    runs = json.loads(_call("detector", "train", *data, "--chunk", 6, "--out", folder / "c.json").stdout)
    assert runs["mentions"] == 8 * 3  # 15 letters
    assert runs["hallucinated"] == 4
    talking.chunk_detector = Detector.load(folder / "c.json")
    assert talking.chunk_detector.chunk == 6
    answer = json.loads(
        _call("generate", folder / "0.png", "-p", "q", "--guided", 2, "--max-new-tokens", 9, "--json").stdout
    )
    assert answer["method"]["candidates"] == 2
    assert len(answer["answers"]) == 1


def test_a_place_is_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = mmattn.wrap(*tiny_llava())
    monkeypatch.setattr(options, "load_model", lambda *_, **__: vlm)
    command = ("refer", folder / "0.png", "-p", "what?", "--max-new-tokens", 3)
    told = json.loads(_call(*command, "--box", "20,10,50,40", "--json").stdout)
    found = vlm.refer(folder / "0.png", "what?", box=(20, 10, 50, 40), max_new_tokens=3)
    assert told["activations"] == pytest.approx(list(found.activations))
    assert told["text"] == found.text
    said = _call(*command, "--scribble", "30,10 40,50", "--version", "controlmllm++").stdout
    assert "Attention in the region" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("refer", "0.png", "-p", "q", "--box", "1,a"), "no list of numbers"),
        (("refer", "0.png", "-p", "q"), "given by nothing"),
        (("generate", "0.png", "-p", "q", "--guided", "2", "--method", "vcd"), "Leave out --method"),
        (("generate", "0.png", "-p", "q", "--guided", "2"), "Nobody trained a detector of chunks"),
        (("detector", "score", "--annotations", "instances.json", "--images", "."), "Nobody trained a detector"),
        (("detector", "score", "--annotations", "instances.json"), "needs the folder"),
    ],
)
def test_bad_words(
    talking: mmattn.VLM, folder: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(mmattn.MmattnError, match=message):
        _call(*words)
