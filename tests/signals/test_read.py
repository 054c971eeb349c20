"""Signals of an answer against whole eager maps and the inputs of the output projections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample
from mmattn.errors import MmattnError
from mmattn.signals import read
from mmattn.signals.words import spelling, word_spans
from tests.stock import attention, eager_maps, inputs_of, is_t5
from tests.tiny import FAMILIES

PROMPT = "What is it?"
ANSWERS = ["a dog, and a red cup!", "no"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    model, processor = FAMILIES[request.param]()
    return mmattn.wrap(model.double(), processor)  # so that rounding does not hide a wrong row


def _picture(size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(sum(size))
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _with_answer(vlm: mmattn.VLM, picture: Image.Image, ids: list[int]) -> dict[str, torch.Tensor]:
    """What a user of plain transformers passes to read an answer."""
    inputs = inputs_of(vlm, [[picture]], [PROMPT])
    key = "decoder_input_ids" if is_t5(vlm) else "input_ids"
    inputs[key] = torch.cat([inputs[key], torch.tensor([ids])], dim=1)
    for name in ("attention_mask", "mm_token_type_ids") if not is_t5(vlm) else ():
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(ids)), value=int(name == "attention_mask"))
    return inputs


@pytest.mark.parametrize("answer", ANSWERS)
def test_signals_equal_those_of_eager_maps(family: mmattn.VLM, answer: str) -> None:
    picture = _picture((120, 60))
    ids = family.adapter.tokenizer(answer, add_special_tokens=False)["input_ids"]
    found = family.signals(picture, PROMPT, ids, divergence=False)
    inputs = _with_answer(family, picture, ids)
    maps = eager_maps(family, inputs)[:, 0].double()
    image = torch.tensor([one == family.adapter.image_token_id for one in inputs["input_ids"][0].tolist()])
    before = 1 if is_t5(family) else inputs["input_ids"].shape[1] - len(ids)
    assert found.divergence is None
    assert found.image.shape == (len(maps), maps.shape[1], len(ids))
    for step in range(len(ids)):
        row = maps[:, :, before - 1 + step]
        torch.testing.assert_close(found.image[..., step].double(), row[..., image].sum(-1), atol=1e-5, rtol=0)
        if is_t5(family):
            assert found.lookback is None
            continue
        context, generated = row[..., :before], row[..., before : before + step]
        expected = torch.ones_like(row[..., 0])
        if step:
            expected = context.mean(-1) / (context.mean(-1) + generated.mean(-1))
        assert found.lookback is not None
        torch.testing.assert_close(found.lookback[..., step].double(), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        scores = family.model(**inputs).logits[0].double().log_softmax(-1)
    length = before if not is_t5(family) else 1
    expected = torch.stack([scores[length - 1 + step, one] for step, one in enumerate(ids)]).exp()
    torch.testing.assert_close(found.probability.double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "instructblip"])
def test_divergence_is_how_far_each_heads_output_moves(name: str) -> None:
    vlm = mmattn.wrap(*FAMILIES[name]())
    picture = _picture((56, 56))
    ids = vlm.adapter.tokenizer(ANSWERS[0], add_special_tokens=False)["input_ids"]
    found = vlm.signals(picture, PROMPT, ids)
    outputs: list[list[torch.Tensor]] = []
    words = vlm.adapter.prepare([Sample((), PROMPT, tuple(ids))])[0].ids[None]
    blind = vlm.model.language_model if vlm.adapter.mixed else vlm.model
    heads = vlm.model.config.get_text_config().num_attention_heads
    with attention(vlm, "eager"), torch.no_grad():
        for model, inputs in ((vlm.model, _with_answer(vlm, picture, ids)), (blind, {"input_ids": words})):
            seen: list[torch.Tensor] = []
            hooks = [
                layer.o_proj.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0][0]))
                for layer in vlm.adapter.attention_layers
            ]
            model(**inputs)
            for hook in hooks:
                hook.remove()
            outputs.append([one.unflatten(-1, (heads, -1))[-len(ids) - 1 : -1] for one in seen])
    expected = torch.stack([(a - b).norm(dim=-1).T for a, b in zip(*outputs, strict=True)])
    assert found.divergence is not None
    torch.testing.assert_close(found.divergence, expected, atol=1e-4, rtol=1e-4)
    top = expected.sort(dim=1, descending=True).values[:, :2].sum(dim=(0, 1))
    torch.testing.assert_close(found.token_divergence(2), top, atol=1e-3, rtol=1e-4)


def test_a_batch_is_its_samples(family: mmattn.VLM) -> None:
    pictures = [_picture((120, 60)), _picture((57, 131)), _picture((56, 56))]
    samples = [
        Sample((picture,), prompt, answer)
        for picture, prompt, answer in zip(pictures, ["q", "what is it?", "so"], ["yes", "no, never", "b"], strict=True)
    ]
    together = read(family.adapter, samples, divergence=True)
    for sample, one in zip(samples, together, strict=True):
        alone = read(family.adapter, [sample], divergence=True)[0]
        assert (one.text, one.ranges, one.tokens) == (alone.text, alone.ranges, alone.tokens)
        for name in ("image", "probability", "divergence", "lookback"):
            mine, other = getattr(one, name), getattr(alone, name)
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(one.looked.weights, alone.looked.weights, atol=1e-5, rtol=0)


def test_words_and_where_they_look(vlm: mmattn.VLM) -> None:
    picture = _picture((120, 60))
    found = vlm.signals(picture, PROMPT, ANSWERS[0])
    words = found.words()
    assert [word.text for word in words] == ["a", "dog", "and", "a", "red", "cup"]
    assert all(found.text[word.start : word.end] == word.text for word in words)
    dog = words[1]
    assert "".join(found.tokens[index] for index in dog.tokens) == "dog"
    assert dog.image == pytest.approx(float(found.image[..., list(dog.tokens)].mean()))
    assert dog.probability == pytest.approx(float(found.probability[list(dog.tokens)].prod()))
    assert dog.risk is None
    # The place is the strongest cell of the mean map of the rows that decided its letters.
    rows = [position - 1 for position in vlm.attend(picture, PROMPT, ANSWERS[0]).positions]
    read_ = vlm.attend(picture, PROMPT, ANSWERS[0], rows="answer")
    before = vlm.attend(picture, PROMPT, ANSWERS[0], rows="last")
    weights = torch.cat([before.weights, read_.weights[:, :, :-1]], dim=2)[:, :, list(dog.tokens)].mean(dim=(0, 1, 2))
    view = read_.layout.images[0].views[0]
    row, column = divmod(int(weights.argmax()), view.columns)
    x, y = view.to_pixels.point(column + 0.5, row + 0.5)
    assert dog.place == pytest.approx((x, y))
    assert rows[0] == read_.layout.prompt_length - 1
    assert found.to_json()["words"][1]["place"] == [pytest.approx(x), pytest.approx(y)]


def test_chosen_heads_tell_where_a_word_looks(vlm: mmattn.VLM) -> None:
    picture = _picture((120, 60))
    found = vlm.signals(picture, PROMPT, ANSWERS[0], pointing=[(2, 1), (0, 3)])
    read_ = vlm.attend(picture, PROMPT, ANSWERS[0], rows="answer").weights[:, :, :-1]
    expected = (read_[2, 1] + read_[0, 3]) / 2
    torch.testing.assert_close(found.looked.weights[0, 0, 1:], expected, atol=1e-5, rtol=0)
    with pytest.raises(MmattnError, match="A head of pointing"):
        vlm.signals(picture, PROMPT, ANSWERS[0], pointing=[(2, 4)])


def test_the_models_own_answer_is_read(vlm: mmattn.VLM) -> None:
    picture = _picture((56, 56))
    answer = vlm.generate(picture, PROMPT, max_new_tokens=5)[0]
    own = vlm.signals(picture, PROMPT, max_new_tokens=5)
    given = vlm.signals(picture, PROMPT, answer)
    assert len(own.tokens) == len(answer.token_ids)
    torch.testing.assert_close(own.image, given.image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "no picture"),
        ({"answer": ""}, "answer to read is empty"),
        ({"answer": []}, "answer to read is empty"),
        ({"answer": [99999]}, "token id of answer"),
    ],
)
def test_bad_requests(vlm: mmattn.VLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.signals(**{"image": _picture((56, 56)), "prompt": PROMPT, "answer": "a", **change})
    found = vlm.signals(_picture((56, 56)), PROMPT, "a", divergence=False)
    with pytest.raises(MmattnError, match="divergence was not read"):
        found.token_divergence()


def test_words_are_runs_of_letters() -> None:
    text = "A well-done dog's (2) cup... größe"
    assert [text[low:high] for low, high in word_spans(text)] == ["A", "well-done", "dog's", "2", "cup", "größe"]
    assert spelling([(0, 2), (2, 5), (5, 5), (5, 9)], (1, 5)) == (0, 1)
