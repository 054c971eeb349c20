"""PAI's edit alone, by the scores of stock forwards; and edits that are restricted to branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import mmattn
from mmattn.attention import Edit, Site
from mmattn.decoding import PAI, RBD, Boost, Method
from mmattn.decoding.method import Combined
from tests.oracle import Whole, full_matrix, prompt_logits
from tests.stock import inputs_of, is_t5
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.12))


def test_only_the_last_row_is_edited(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])

    def change(whole: Whole) -> torch.Tensor:
        scores = whole.scores.clone()
        if whole.layer in (0, 1):
            picture = whole.image[:, None, :].expand(-1, scores.shape[1], -1)
            scores[:, :, -1][picture] += 2 * scores[:, :, -1][picture].abs()
        return scores.softmax(-1).nan_to_num(0)

    with full_matrix(family, inputs["input_ids"], change):
        expected = prompt_logits(family, inputs)
    plain = prompt_logits(family, inputs)
    with mmattn.edit(family.model, PAI(alpha=2, gamma=1, start=0, end=2)):
        torch.testing.assert_close(prompt_logits(family, inputs), expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-3
    if not is_t5(family):  # whose decoder starts with a single row
        with mmattn.edit(family.model, "pai(alpha=2, gamma=1, start=0, end=2)"), torch.no_grad():
            edited = family.model(**inputs).logits[:, -2]
        with torch.no_grad():
            assert torch.equal(edited, family.model(**inputs).logits[:, -2])


@dataclass(frozen=True)
class _Somewhere(Edit):
    """Nothing to the picture, and perhaps louder heads."""

    output_too: bool = False
    branches: ClassVar[tuple[str, ...] | None] = ("plain",)

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        return weights * ~site.image / (weights * ~site.image).sum(-1, keepdim=True)

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        return output * 3 if self.output_too else output


@dataclass(frozen=True)
class _Elsewhere(_Somewhere):
    branches: ClassVar[tuple[str, ...] | None] = ("noised picture",)


@dataclass(frozen=True)
class _As(Method):
    """One edit, as a method."""

    edit: Edit = _Somewhere()

    def edits(self) -> tuple[Edit, ...]:
        return (self.edit,)


@pytest.mark.parametrize("output_too", [False, True])
def test_edits_keep_to_their_branches(vlm: mmattn.VLM, pictures: list[Any], output_too: bool) -> None:
    """With the other branch's weight at 0, an edit of that branch does nothing, and one of the plain branch all."""
    settings: dict[str, Any] = {"max_new_tokens": 6, "stop_token_ids": []}
    alone = RBD(alpha_t=1e-6, alpha_v=0, beta=0)
    plain = vlm.generate(pictures, PROMPTS, method=alone, **settings)
    here = Combined((_As(_Somewhere(output_too)), alone))
    there = Combined((_As(_Elsewhere(output_too)), alone))
    assert vlm.generate(pictures, PROMPTS, method=there, **settings) == plain
    assert vlm.generate(pictures, PROMPTS, method=here, **settings) != plain
    strong = RBD(alpha_t=3, alpha_v=0, beta=0)
    changed = vlm.generate(pictures, PROMPTS, method=Combined((_As(_Elsewhere(output_too)), strong)), **settings)
    assert changed != vlm.generate(pictures, PROMPTS, method=strong, **settings)
    assert Boost().edits()[0].branches is None
