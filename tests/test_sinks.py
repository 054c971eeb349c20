"""Sink dimensions that were put there are found, and so many sinks as were put there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mmattn
from mmattn import cli
from mmattn.decoding import resolve
from mmattn.errors import MmattnError
from tests.stock import inputs_of
from tests.tiny import FAMILIES, tiny_llava

DIMENSIONS, PLACES, TAU = (5, 20), (3, 7, 12), 3.5  # of 48 dimensions none can exceed the root of 48


@pytest.fixture(scope="module")
def planted() -> Iterator[mmattn.VLM]:
    """The first token and three image tokens are huge in two dimensions, in all layers."""
    model, processor = tiny_llava(spread=0.05)
    token = processor.tokenizer("x")["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token, list(DIMENSIONS)] = torch.tensor([300.0, -300.0])

    def plant(_module: Any, _given: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, list(PLACES), DIMENSIONS[1]] = 400.0
        return out

    hook = model.model.multi_modal_projector.register_forward_hook(plant)
    yield mmattn.wrap(model, processor)
    hook.remove()


def test_planted_sinks_are_found(planted: mmattn.VLM, pictures: list[Any]) -> None:
    found = mmattn.find_sinks(planted, pictures[:3], tau=TAU)
    assert found.dimensions == DIMENSIONS
    assert found.by_layer == (DIMENSIONS,) * 3
    assert found.visual == (3.0,) * 3
    assert found.text == (1.0,) * 3
    assert {dimension for dimension, _ in found.largest[:2]} == set(DIMENSIONS)
    assert found.method == 'var(dimensions="5 20", tau=3.5)'
    assert found.pictures == 3
    method = resolve(found.method)
    assert (method.dimensions, method.tau) == ("5 20", TAU)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("instructblip")])
def test_the_numbers_are_those_of_the_hidden_states(name: str, pictures: list[Any]) -> None:
    """The states that transformers itself returns, normalised anew."""
    vlm, tau = mmattn.wrap(*FAMILIES[name]()), 1.2
    found = mmattn.find_sinks(vlm, pictures[:1], "what?", tau)
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    with torch.no_grad():
        states = torch.stack(vlm.model(**inputs, output_hidden_states=True).hidden_states[:-1])[:, 0].double()
    size = states.abs() / states.square().mean(-1, keepdim=True).sqrt()
    large = size[:, 0] > tau
    assert found.by_layer == tuple(tuple(row.nonzero()[:, 0].tolist()) for row in large)
    chosen = (large.sum(0) >= 2).nonzero()[:, 0]
    assert found.dimensions == tuple(chosen.tolist()) != ()
    sinks = (size[..., chosen] > tau).any(-1)
    image = inputs["input_ids"][0] == vlm.adapter.image_token_id
    assert found.visual == tuple((sinks & image).sum(-1).tolist())
    assert found.text == tuple((sinks & ~image).sum(-1).tolist())
    assert found.largest[0][1] == pytest.approx(size[:, 0].median(0).values.max().item(), abs=0.01)


def test_none_is_a_finding(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    found = mmattn.find_sinks(vlm, pictures[:1], tau=20)
    assert (found.dimensions, found.method, set(found.visual)) == ((), None, {0.0})
    with pytest.raises(MmattnError, match="no picture"):
        mmattn.find_sinks(vlm, [])


@pytest.mark.parametrize("name", ["instructblip", "instructblip-t5"])
def test_families_whose_pictures_come_first(name: str, pictures: list[Any]) -> None:
    found = mmattn.find_sinks(mmattn.wrap(*FAMILIES[name]()), pictures[:2], tau=1.5)
    assert len(found.by_layer) == len(found.visual) == 3
    assert max(found.visual) > 0


def test_the_program_tells_what_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((168, 168), 90).convert("RGB").save(tmp_path / "a.png")

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mmattn", "sinks", "scenes-llava", str(tmp_path / "a.png"), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    report = json.loads(run("--json", "--tau", "2.5", "--device", "cpu"))
    assert report["pictures"] == 1
    assert len(report["by_layer"]) == 5
    text = run("--tau", "2.5", "--device", "cpu")
    assert (f"Use --method '{report['method']}'" in text) == bool(report["method"])
    assert "VAR finds no sinks here" in run("--tau", "100", "--device", "cpu")
