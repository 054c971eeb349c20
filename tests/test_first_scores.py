"""`generate(scores=...)`: how chosen words stood when the first token was chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mmattn
from mmattn.errors import MmattnError
from tests.oracle import prompt_logits
from tests.stock import inputs_of
from tests.test_families import PROMPTS
from tests.test_methods import STRONG
from tests.tiny import FAMILIES, TEMPLATE, tiny_llava

SETTINGS: dict[str, Any] = {"max_new_tokens": 2, "stop_token_ids": []}


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_scores_are_the_models_own(name: str, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES[name]())
    ids = list(range(vlm.model.get_input_embeddings().num_embeddings))
    got = vlm.generate([[one] for one in pictures[:3]], PROMPTS[:3], scores=ids, **SETTINGS)
    for answer, picture, prompt in zip(got, pictures, PROMPTS, strict=False):
        expected = prompt_logits(vlm, inputs_of(vlm, [[picture]], [prompt]))[0]
        assert answer.scores is not None
        assert torch.tensor(list(answer.scores.values())) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("method", ["greedy", *STRONG])
def test_every_method_scores_what_it_chooses_from(vlm: mmattn.VLM, pictures: list[Any], method: str) -> None:
    ids = list(range(vlm.model.get_input_embeddings().num_embeddings))
    given = {"method": STRONG.get(method, method), "scores": ids, **SETTINGS}
    together = vlm.generate([[one] for one in pictures], PROMPTS, **given)
    for answer, picture, prompt in zip(together, pictures, PROMPTS, strict=True):
        assert answer.scores is not None
        assert max(answer.scores, key=answer.scores.__getitem__) == answer.token_ids[0]
        alone = vlm.generate([[picture]], [prompt], **given)[0]
        assert alone.scores == pytest.approx(answer.scores, rel=1e-4, abs=1e-3), "a batch is its samples"


def test_a_word_stands_for_its_first_token(pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*tiny_llava(template=TEMPLATE.replace("ASSISTANT:", "ASSISTANT:\n")))
    tokens = {word: vlm.processor.tokenizer.convert_tokens_to_ids(word[0]) for word in ("Yes", "no")}
    got = vlm.generate(pictures[0], "what?", scores=["Yes", "no", tokens["Yes"]])[0].scores
    assert got is not None
    assert list(got) == ["Yes", "no", tokens["Yes"]]
    assert got["Yes"] == got[tokens["Yes"]] != got["no"]


def test_nothing_is_kept_unasked(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    assert vlm.generate(pictures[0], "what?", max_new_tokens=1)[0].scores is None
    with pytest.raises(MmattnError, match="answer to read is empty"):
        vlm.generate(pictures[0], "what?", scores=[""])
    with pytest.raises(MmattnError, match="token id of scores"):
        vlm.generate(pictures[0], "what?", scores=[10**6])
