"""Guided decoding against candidates that are read whole, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding.sampling import sample_keys, stream
from mmattn.errors import MmattnError
from mmattn.signals import Detector, Guidance, read
from tests.tiny import FAMILIES

HOW = Guidance(candidates=3, chunk=2, temperature=2.0, top_p=1.0)
DECODERS = [name for name in FAMILIES if name != "instructblip-t5"]


def _picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _detector(vlm: mmattn.VLM, signals: tuple[str, ...] = ("lookback", "image")) -> Detector:
    shape = (vlm.adapter.depth, vlm.model.config.get_text_config().num_attention_heads)
    random = np.random.default_rng(5)
    weights = random.normal(size=len(signals) * shape[0] * shape[1]) * 3
    return Detector(signals, shape, tuple(weights.tolist()), 0.0)


@pytest.mark.parametrize("name", DECODERS)
def test_the_least_risky_candidate_is_kept_chunk_by_chunk(name: str) -> None:
    vlm = mmattn.wrap(*FAMILIES[name]())
    detector, sample = _detector(vlm), Sample((_picture(1, (120, 60)),), "what is it?")
    answer = vlm.guide(sample.images[0], sample.prompt, detector=detector, guidance=HOW, max_new_tokens=6)[0]
    ((key, repeat),) = sample_keys([sample])
    draws = torch.rand(6, 3, generator=stream(0, "guided", f"{key}\0{repeat}"))
    stop = vlm._stop_ids(None)
    kept: list[int] = []
    while len(kept) < 6 and not (kept and kept[-1] in stop):
        found = []
        for candidate in range(3):
            ids = list(kept)
            for step in range(len(kept), len(kept) + 2):
                made = vlm.adapter.prepare([Sample(sample.images, sample.prompt, tuple(ids) or None)])[0]
                with torch.no_grad():
                    features = [vlm.adapter.encode(made.pixels)]
                    hidden = vlm.adapter.decode(vlm.adapter.embed([made], features))[:, -1]
                    chosen = HOW.sampling.choose(vlm.adapter.logits(hidden), draws[step, candidate][None])
                ids.append(int(chosen))
                if ids[-1] in stop:
                    break
            signals = read(vlm.adapter, [Sample(sample.images, sample.prompt, tuple(ids))])[0]
            found.append((detector.risk(signals, range(len(kept), len(ids))), ids))
        kept = min(found, key=lambda one: one[0])[1]
    stopped = kept[-1] in stop
    assert answer.token_ids == tuple(kept[:-1] if stopped else kept)
    assert answer.finish_reason == ("stop" if stopped else "length")


def test_a_batch_is_its_samples(vlm: mmattn.VLM) -> None:
    pictures = [_picture(1), _picture(2, (120, 60)), _picture(1)]
    prompts = ["is it?", "what is in the picture?", "no"]
    given: dict[str, Any] = {"detector": _detector(vlm), "guidance": HOW, "max_new_tokens": 7, "seed": 3}
    together = vlm.guide(pictures, prompts, **given)
    assert together == vlm.guide(pictures, prompts, batch_size=2, **given)
    for picture, prompt, one in zip(pictures, prompts, together, strict=True):
        assert vlm.guide(picture, prompt, **given)[0] == one
    assert together != vlm.guide(pictures, prompts, **{**given, "seed": 4})


def test_without_a_choice_it_is_decoding(vlm: mmattn.VLM) -> None:
    """At a temperature near 0 all candidates are the greedy continuation."""
    how = Guidance(candidates=3, chunk=4, temperature=1e-5)
    made = vlm.guide(_picture(1), ["is it?", "a"], detector=_detector(vlm), guidance=how, max_new_tokens=9)
    assert made == vlm.generate(_picture(1), ["is it?", "a"], max_new_tokens=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": None}, "Nobody trained a detector"),
        ({"images": None}, "needs a picture"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
    ],
)
def test_bad_requests(vlm: mmattn.VLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.guide(**{"images": _picture(1), "prompts": "a", "detector": _detector(vlm), **change})
    with pytest.raises(MmattnError, match="candidates must be"):
        Guidance(candidates=0)
    with pytest.raises(MmattnError, match="temperature must be above 0"):
        Guidance(temperature=0)


def test_an_encoder_decoder_is_told() -> None:
    vlm = mmattn.wrap(*FAMILIES["instructblip-t5"]())
    with pytest.raises(MmattnError, match="no lookback ratio"):
        vlm.guide(_picture(1), "a", detector=_detector(vlm))
