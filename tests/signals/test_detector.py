"""The detector: its fit, its file, and AUROC with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmattn
from mmattn.errors import MmattnError
from mmattn.eval.detection import Mentions, auroc, choose, risks, score, train
from mmattn.signals import Detector, Guidance


def _data(seed: int = 0, count: int = 60) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 4)) * [1, 5, 0.1, 0] + [0, 3, 1, 2]
    wrong = (features[:, 0] + 0.1 * features[:, 1] + random.normal(size=count) > 0.5).astype(float)
    return features, wrong


def test_the_fit_minimises_the_penalised_log_loss() -> None:
    """Newton's method on the same objective, written out."""
    features, wrong = _data()
    found = Detector.fit(features, wrong, ("image",), (2, 2), penalty=0.7)
    spread = np.where(features.std(0) > 0, features.std(0), 1)
    known = np.column_stack([(features - features.mean(0)) / spread, np.ones(len(features))])
    ridge, theta = np.diag([0.7] * 4 + [0.0]), np.zeros(5)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-known @ theta))
        hessian = (known * (chance * (1 - chance))[:, None]).T @ known + ridge
        theta -= np.linalg.solve(hessian, known.T @ (chance - wrong) + ridge @ theta)
    expected = 1 / (1 + np.exp(-known @ theta))
    np.testing.assert_allclose(found.risks(torch.from_numpy(features)).numpy(), expected, atol=1e-4)


def test_the_file_brings_the_detector_back(tmp_path: Path) -> None:
    features, wrong = _data()
    made = Detector.fit(features, wrong, ("lookback",), (2, 2), chunk=8, told={"set": "mine"})
    made.save(tmp_path / "d.json")
    back = Detector.load(tmp_path / "d.json")
    given = torch.from_numpy(features)
    torch.testing.assert_close(back.risks(given), made.risks(given), atol=1e-4, rtol=0)
    assert (back.signals, back.shape, back.chunk, back.told) == (("lookback",), (2, 2), 8, {"set": "mine"})


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"weights": [1.0]}, {"signals": ["dog"]}, {"signals": []}, {"shape": 3}, {"bias": "a"}],
)
def test_damaged_files_are_told(tmp_path: Path, change: dict[str, Any]) -> None:
    features, wrong = _data()
    path = tmp_path / "d.json"
    Detector.fit(features, wrong, ("lookback",), (2, 2)).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(MmattnError, match="is no detector"):
        Detector.load(path)
    with pytest.raises(MmattnError, match="Cannot read the detector"):
        Detector.load(tmp_path / "missing.json")


def test_nothing_to_tell_apart_and_another_model() -> None:
    features, wrong = _data()
    with pytest.raises(MmattnError, match="Nothing to tell apart"):
        Detector.fit(features, np.zeros(60), ("lookback",), (2, 2))
    with pytest.raises(MmattnError, match="reads 4 numbers, the model gives 6"):
        Detector.fit(features, wrong, ("lookback",), (2, 2)).risks(torch.zeros(6))


def test_auroc_counts_pairs() -> None:
    random = np.random.default_rng(1)
    said, wrong = random.integers(0, 6, 40).astype(float), random.integers(0, 2, 40).astype(float)
    weights = random.integers(0, 3, (5, 40)).astype(float)
    expected = []
    for row in weights:
        won = total = 0.0
        for i in range(40):
            for j in range(40):
                if wrong[i] and not wrong[j]:
                    total += row[i] * row[j]
                    won += row[i] * row[j] * (1.0 if said[i] > said[j] else 0.5 if said[i] == said[j] else 0.0)
        expected.append(won / total)
    np.testing.assert_allclose(auroc(said, wrong, weights), expected)
    assert np.isnan(auroc(said, np.zeros(40), np.ones(40)))


def _mentions(count: int = 120) -> Mentions:
    random = np.random.default_rng(2)
    wrong = random.integers(0, 2, count).astype(float)
    good = random.normal(size=(count, 4)) + wrong[:, None]
    noise = random.normal(size=(count, 4))
    pictures = np.arange(count) // 3
    return Mentions({"lookback": good, "image": noise}, {"probability": wrong}, wrong, pictures, count // 3, (2, 2))


def test_signals_are_chosen_on_pictures_that_did_not_train() -> None:
    mentions = _mentions()
    chosen, penalty, tried = choose(mentions)
    assert "lookback" in chosen
    assert tried["lookback, penalty 1"] > 0.8 > tried["image, penalty 1"]
    assert max(tried.values()) == tried[f"{'+'.join(chosen)}, penalty {penalty:g}"]
    detector = train(mentions.only(range(20)), ("lookback",))
    rest = mentions.only(range(20, 40))
    assert rest.images == 20
    assert rest.pictures.min() == 0
    value = score(rest, risks(detector, rest))
    assert value.value is not None
    assert value.low is not None
    assert value.high is not None
    assert 0.5 < value.low < value.value < value.high <= 1
    assert score(mentions, mentions.plain["probability"]).value == 1


def test_a_detector_in_the_models_folder_is_found(tmp_path: Path) -> None:
    from tests.tiny import tiny_llava

    model, processor = tiny_llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert mmattn.load(str(tmp_path), device="cpu").detector is None
    Detector(("lookback",), (3, 4), (0.5,) * 12, -1.0).save(tmp_path / "detector.json")
    vlm = mmattn.load(str(tmp_path), device="cpu")
    assert vlm.detector is not None
    picture = np.zeros((56, 56, 3), dtype=np.uint8)
    found = vlm.signals(picture, "what?", vlm.adapter.tokenizer("ab", add_special_tokens=False)["input_ids"])
    word = found.words(vlm.detector)[0]
    assert found.lookback is not None
    expected = torch.sigmoid(found.lookback.mean(-1).sum() * 0.5 - 1.0)
    assert word.risk == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("name", ["scenes-llava", "scenes-qwen", "scenes-instructblip"])
def test_the_bundled_models_have_detectors_that_fit(name: str) -> None:
    vlm = mmattn.load(name, device="cpu")
    config = vlm.model.config.get_text_config()
    for detector, chunk in ((vlm.detector, 0), (vlm.chunk_detector, 8)):
        assert detector is not None
        assert detector.shape == (config.num_hidden_layers, config.num_attention_heads)
        assert detector.chunk == chunk
        assert detector.told["set"] == "captions of the scenes tune split"
    picture = np.full((168, 168, 3), 128, dtype=np.uint8)
    words = vlm.signals(picture, "Describe the image.", "A dog.").words(vlm.detector)
    assert all(word.risk is not None and 0 < word.risk < 1 for word in words)
    how = Guidance(candidates=2, chunk=2)
    assert len(vlm.guide(picture, "Describe the image.", guidance=how, max_new_tokens=4)[0].token_ids) <= 4
