"""VCD against its equations: golden schedule values, and an uncached two-pass loop in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mmattn
from mmattn.decoding import VCD, vcd
from mmattn.decoding.sampling import stream
from mmattn.decoding.vcd import add_noise, schedule

# t, abar, sqrt(abar), sqrt(1 - abar), as published
GOLDEN = [
    (500, 0.744799, 0.863017, 0.505175),
    (700, 0.351266, 0.592677, 0.805440),
    (900, 0.133143, 0.364888, 0.931051),
    (999, 0.081249, 0.285042, 0.958515),
]


@pytest.mark.parametrize(("step", "share", "signal", "noise"), GOLDEN)
def test_schedule_has_the_published_values(step: int, share: float, signal: float, noise: float) -> None:
    value = schedule()[step].item()
    assert (value, value**0.5, (1 - value) ** 0.5) == pytest.approx((share, signal, noise), abs=1e-6)
    assert len(schedule()) == 1000


@pytest.mark.parametrize(("step", "signal", "noise"), [(row[0], row[2], row[3]) for row in GOLDEN])
def test_noise_mixes_signal_and_normal_draws(step: int, signal: float, noise: float) -> None:
    pixels = torch.randn(3, 40, 41)
    drawn = torch.randn(3, 40, 41, generator=torch.Generator().manual_seed(9))
    noised = add_noise(pixels, step, torch.Generator().manual_seed(9))
    torch.testing.assert_close(noised, signal * pixels + noise * drawn, atol=2e-5, rtol=0)


def _oracle(vlm: mmattn.VLM, picture: Any, prompt: str, alpha: float, beta: float, step: int, tokens: int) -> list[int]:
    """Greedy VCD from the paper: two full forward passes per token, no cache, numpy for the rest."""
    inputs = dict(vlm.processor(images=picture, text=f"USER: <image>\n{prompt} ASSISTANT:", return_tensors="pt"))
    (key,) = mmattn.adapters.Sample((picture,), prompt).image_keys
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.5e-2 - 1e-5) + 1e-5
    share = np.prod(1 - betas[: step + 1])
    clean = inputs["pixel_values"]
    eps = torch.randn(clean.shape[1:], generator=stream(0, "branch noised picture", key))
    noised = np.sqrt(share) * clean + np.sqrt(1 - share) * eps
    answer: list[int] = []
    for _ in range(tokens):
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
        with torch.no_grad():
            z, z_noised = (
                vlm.model(input_ids=ids, pixel_values=pixels.float()).logits[0, -1].double().numpy()
                for pixels in (clean, noised)
            )
        p = np.exp(z - z.max())
        contrast = (1 + alpha) * z - alpha * z_noised
        contrast[p < beta * p.max()] = -np.inf
        answer.append(int(contrast.argmax()))
    return answer


@pytest.mark.parametrize(("alpha", "beta", "step"), [(1.0, 0.1, 500), (3.0, 0.01, 999), (0.5, 0.5, 700)])
def test_tokens_follow_the_equation(vlm: mmattn.VLM, pictures: list[Any], alpha: float, beta: float, step: int) -> None:
    prompts = ["what?", "is there a dog?", "describe", "q", "go on"]
    got = vlm.generate(pictures, prompts, method=VCD(alpha, beta, step), max_new_tokens=6, stop_token_ids=[])
    expected = [_oracle(vlm, *pair, alpha, beta, step, 6) for pair in zip(pictures, prompts, strict=True)]
    assert [list(one.token_ids) for one in got] == expected
    plain = vlm.generate(pictures, prompts, max_new_tokens=6, stop_token_ids=[])
    assert [one.token_ids for one in got] != [one.token_ids for one in plain]


def test_noise_hangs_on_content_alone(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Equal samples in one call see equal noise, so greedy answers agree; only draws of tokens differ."""
    settings: dict[str, Any] = {"method": VCD(3, 0, 999), "max_new_tokens": 6, "stop_token_ids": []}
    first, second = vlm.generate(pictures[0], ["q", "q"], **settings)
    assert first == second
    drawn = vlm.generate(pictures[0], ["q"] * 4, do_sample=True, temperature=3.0, **settings)
    assert len({one.token_ids for one in drawn}) > 1


def test_noise_belongs_to_the_picture(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Whatever is asked about a picture, it is encoded twice: as it is, and noised."""
    seen: list[int] = []
    encode = vlm.adapter.encode
    vlm.adapter.encode = lambda batch, shares=None: seen.append(len(batch)) or encode(batch, shares)  # type: ignore[method-assign, func-returns-value]
    try:
        both = [[pictures[0], pictures[0]], pictures[0], pictures[1]]
        vlm.generate(both, ["q", "what?", "q"], method="vcd", max_new_tokens=1)
    finally:
        del vlm.adapter.encode
    assert seen == [2 + 2]


@pytest.mark.parametrize("capture", [None, mmattn.Capture(tokens=[0])])
def test_noise_is_drawn_once_for_all_batches(
    vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch, capture: mmattn.Capture | None
) -> None:
    drawn: list[int] = []
    add = vcd.add_noise
    monkeypatch.setattr(vcd, "add_noise", lambda *given: drawn.append(given[1]) or add(*given))  # type: ignore[func-returns-value]
    settings: dict[str, Any] = {"method": VCD(3, 0, 999), "max_new_tokens": 4, "capture": capture}
    one_by_one = vlm.generate(pictures[0], ["q", "what?", "is it?"], batch_size=1, **settings)
    assert drawn == [999]
    assert one_by_one == vlm.generate(pictures[0], ["q", "what?", "is it?"], **settings)
