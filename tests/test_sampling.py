"""The choice of a token against a plain numpy re-derivation."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmattn.decoding import Sampling


def _oracle(scores: np.ndarray, u: float, temperature: float, top_p: float, top_k: int) -> int:
    order = np.argsort(-scores, kind="stable")
    kept = list(order[: top_k or None])
    p = np.exp((scores[kept] - scores[kept].max()) / temperature)
    p /= p.sum()
    nucleus, mass = [], 0.0
    for token, share in zip(kept, p, strict=True):
        if mass >= top_p:
            break
        nucleus.append((token, share))
        mass += share
    total, seen = sum(share for _, share in nucleus), 0.0
    for token, share in nucleus:
        seen += share / total
        if u < seen:
            return int(token)
    return int(nucleus[-1][0])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.floats(0, 0.999),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0.2, 0.7, 1.0]),
    st.integers(0, 14),
)
def test_choice_equals_the_definition(raw: list[int], u: float, temperature: float, top_p: float, top_k: int) -> None:
    scores = torch.tensor([raw], dtype=torch.float32) / 10
    got = Sampling(True, temperature, top_p, top_k).choose(scores, torch.tensor([u], dtype=torch.float64))
    near = {
        _oracle(scores[0].double().numpy(), min(max(u + shift, 0), 1), temperature, top_p, top_k)
        for shift in (-1e-6, 0, 1e-6)  # float32 may fall on the other side of a boundary
    }
    assert int(got) in near or any(abs(top_p - edge) < 1e-5 for edge in np.cumsum(np.sort(_share(scores, temperature))))


def _share(scores: torch.Tensor, temperature: float) -> np.ndarray:
    return (scores[0].double() / temperature).softmax(-1).numpy()[::-1]


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).expand(20000, -1)
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(Sampling(True).choose(scores, uniforms), minlength=4) / 20000
    torch.testing.assert_close(counts, scores[0].softmax(-1), atol=0.015, rtol=0)
    assert counts[3] == 0


def test_a_low_temperature_is_greedy() -> None:
    scores = torch.tensor([[1e30, 3e30, 1.0, -torch.inf]])
    assert Sampling(True, 1e-6).choose(scores, torch.tensor([0.999])).tolist() == [1]


def test_greedy_takes_the_best() -> None:
    assert Sampling().choose(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]]), None).tolist() == [1, 0]
