"""VHR against its equations: two unmodified models side by side, one layer after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mmattn
from mmattn.decoding import VHR
from mmattn.errors import MmattnError
from tests.stock import comparable, is_t5
from tests.test_contrasts import Stock
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

HEADS = 4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return comparable(request.param)


def _projection(layer: Any) -> Any:
    return layer.o if hasattr(layer, "o") else layer.o_proj


class _Scaled:
    """Multiplies what heads give before the projection; keeps what they gave at the last position."""

    def __init__(self, vlm: mmattn.VLM, factors: dict[int, NDArray[np.float64]]) -> None:
        self.last: dict[int, NDArray[np.float64]] = {}
        self._handles = [
            _projection(layer).register_forward_pre_hook(self._hook(index, factors))
            for index, layer in enumerate(vlm.adapter.attention_layers)
        ]

    def _hook(self, index: int, factors: dict[int, NDArray[np.float64]]) -> Any:
        def hook(_module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            heads = given[0].unflatten(-1, (HEADS, -1))
            self.last[index] = heads[0, -1].double().numpy()
            if index in factors:
                heads = heads * torch.tensor(factors[index])[:, None].float()
            return (heads.flatten(-2),)

        return hook

    def __enter__(self) -> _Scaled:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _choose(seen: NDArray[np.float64], blind: NDArray[np.float64], drop: bool) -> list[bool]:
    vhd = [float(np.sqrt(((a - b) ** 2).sum())) for a, b in zip(seen, blind, strict=True)]
    ta = [float(np.sqrt((b**2).sum())) for b in blind]
    limits = [np.mean(values) + np.std(values) for values in (vhd, ta)]
    if drop:
        vhd = [0.0 if v > limits[0] and t > limits[1] else v for v, t in zip(vhd, ta, strict=True)]
    return [v > np.median(vhd) for v in vhd]


@pytest.mark.parametrize("method", [VHR(alpha=3, layers=2), VHR(alpha=0.2, layers=9, drop_outliers=0)])
def test_tokens_follow_the_equation(family: mmattn.VLM, pictures: list[Any], method: VHR) -> None:
    got = family.generate(pictures[:2], PROMPTS[:2], method=method, max_new_tokens=3, stop_token_ids=[])
    for one, picture, prompt in zip(got, pictures[:2], PROMPTS[:2], strict=True):
        stock = Stock(family, picture, prompt)
        factors: dict[int, NDArray[np.float64]] = {}
        for layer in range(max(0, 3 - method.layers), 3):
            # One layer after the other, those below reinforced: the slow way.
            with _Scaled(family, factors) as seen:
                stock([])
            with _Scaled(family, factors) as blind:
                stock([], stock.inputs(blind=True))
            chosen = _choose(seen.last[layer], blind.last[layer], bool(method.drop_outliers))
            factors[layer] = np.where(chosen, method.alpha, 1.0)
        assert any((factor != 1).any() for factor in factors.values())
        for step, token in enumerate(one.token_ids):
            with _Scaled(family, factors):
                scores = stock(list(one.token_ids[:step]))
            assert scores[token] >= scores.max() - 1e-4


def test_other_methods_branches_are_reinforced_too(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    words = "vhr(alpha=3)+iava(alpha=3, beta=0.01, lam=0.3)+boost(strength=3)"
    both = family.generate(pictures[:3], PROMPTS[:3], method=words, **settings)
    alone = [family.generate(i, p, method=words, **settings)[0] for i, p in zip(pictures, PROMPTS[:3], strict=False)]
    assert both == alone
    assert both != family.generate(pictures[:3], PROMPTS[:3], method=words.split("+", 1)[1], **settings)


def test_captured_rows_are_those_of_the_plain_branch(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 4, "stop_token_ids": []}
    got = family.generate(pictures[:2], PROMPTS[:2], method="vhr", capture=mmattn.decoding.Capture(), **settings)
    plain = family.generate(pictures[:2], PROMPTS[:2], method="vhr", **settings)
    assert got == plain
    for one in got:
        assert one.attention is not None
        assert one.attention.weights.shape[2] == 4
    if is_t5(family):
        return
    first = family.attend(pictures[0], PROMPTS[0], rows="last")
    assert got[0].attention is not None
    torch.testing.assert_close(got[0].attention.weights[0, :, 0], first.weights[0, :, 0], atol=1e-5, rtol=1e-4)


def test_a_single_forward_cannot_choose_heads(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match="second prompt"):
        vlm.attend(pictures[0], "what?", method="vhr")
