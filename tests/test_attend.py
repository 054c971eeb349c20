"""`attend`: which rows are read, and what is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mmattn
from mmattn.errors import MmattnError
from mmattn.grounding import overlay, save_overlay
from mmattn.grounding.attention import describe_rows


def _eager(vlm: mmattn.VLM, picture: Any, text: str) -> torch.Tensor:
    inputs = vlm.processor(images=picture, text=text, return_tensors="pt")
    vlm.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        maps = torch.stack(vlm.model(**inputs, output_attentions=True).attentions)[:, 0]
    vlm.model.set_attn_implementation({"text_config": "sdpa"})
    return maps[..., inputs["input_ids"][0] == 3]


PROMPT = "USER: <image>\nis there a cat? ASSISTANT:"


def test_default_rows_are_the_last_prompt_token_or_the_answer(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    full = _eager(vlm, pictures[1], PROMPT)
    last = vlm.attend(pictures[1], "is there a cat?")
    assert last.tokens == (":",)
    torch.testing.assert_close(last.weights, full[:, :, -1:], atol=2e-5, rtol=0)
    full = _eager(vlm, pictures[1], PROMPT + " Yes")
    for answer in ("Yes", "  Yes ", [36 + 0, 1]):
        read = vlm.attend(pictures[1], "is there a cat?", answer)
        assert len(read.positions) == (4 if isinstance(answer, str) else 2)
    read = vlm.attend(pictures[1], "is there a cat?", "Yes")
    assert read.tokens == (" ", "Y", "e", "s")
    torch.testing.assert_close(read.weights, full[:, :, -4:], atol=2e-5, rtol=0)


def test_a_generation_is_read_token_by_token(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    answer = vlm.generate(pictures[0], "q", max_new_tokens=5, stop_token_ids=[])[0]
    read = vlm.attend(pictures[0], "q", answer)
    assert len(read.tokens) == 5
    assert read.weights.shape == (3, 4, 5, 16)
    assert bool((read.weights.sum(-1) < 1).all())


def test_an_answer_may_hold_the_placeholder_token(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    read = vlm.attend(pictures[0], "q", [50, vlm.adapter.image_token_id, 51])
    assert read.tokens == vlm.attend(pictures[0], "q", [50, 3, 51]).tokens
    assert read.weights.shape == (3, 4, 3, 16)


def test_words_of_the_prompt_choose_their_tokens(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    read = vlm.attend(pictures[0], "a cat, no: a Cat?", rows="cat")
    assert "".join(read.tokens) == "Cat"
    everything = vlm.attend(pictures[0], "is it?", rows="prompt")
    assert "".join(everything.tokens) == "<s>USER: \nis it? ASSISTANT:"
    assert describe_rows(read)[0].keys() == {"position", "token", "image_share"}


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("this is an island", "is", (5, "is")),  # a whole word, not the end of "this" or the start of "island"
        ("an isthmus", "is", (3, "is")),  # no whole word: inside one
        ("a cat and a dog", "a", (10, "a")),
        ("the user asks the assistant", "user", (4, "user")),  # not the template's own USER and ASSISTANT
        ("the user asks the Assistant", "assistant", (18, "Assistant")),
        ("\u0130\u0130\u0130\u0130 Is there a dog", "dog", (16, "dog")),  # letters that lower() makes longer
        ("A", "a", (0, "A")),
        ("what (is) it?", "(is)", (5, "(is)")),
    ],
)
def test_words_are_found_in_what_the_user_said(
    vlm: mmattn.VLM, pictures: list[Any], prompt: str, words: str, expected: tuple[int, str]
) -> None:
    read = vlm.attend(pictures[0], prompt, rows=words)
    assert "".join(read.tokens) == expected[1]
    everything = vlm.attend(pictures[0], prompt, rows=prompt)
    assert "".join(everything.tokens).encode(errors="ignore")[:1] == prompt.encode()[:1] or not prompt.isascii()
    assert read.positions[0] - everything.positions[0] == len(prompt[: expected[0]].encode())


@pytest.mark.parametrize("words", ["USER", "assist", "ASSISTANT:", "<s>"])
def test_the_templates_words_are_not_the_users(vlm: mmattn.VLM, pictures: list[Any], words: str) -> None:
    with pytest.raises(MmattnError, match="do not stand in the prompt"):
        vlm.attend(pictures[0], "what?", rows=words)


def test_layers_keep_the_order_and_numbers_that_were_asked_for(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    full = vlm.attend(pictures[0], "q")
    read = vlm.attend(pictures[0], "q", layers=np.array([2, 0, -1]))
    assert (read.layers, full.layers, read.depth) == ((2, 0), (0, 1, 2), 3)
    assert torch.equal(read.weights, full.weights[[2, 0]])
    for layers in (0, np.int64(2), [2, 0], -1):
        np.testing.assert_array_equal(
            read.heatmap(layers=layers, heads=np.int32(1)), full.heatmap(layers=layers, heads=1)
        )
    with pytest.raises(MmattnError, match=r"Layer 1 was not read\. Read: 2, 0"):
        read.heatmap(layers=1)


def test_spans_of_a_sequence(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    prepared = vlm.adapter.prepare([mmattn.adapters.Sample((pictures[0],), "is it?", "Yes")])[0]
    layout, ids = prepared.layout, prepared.ids.tolist()
    words = [vlm.adapter.tokenizer.decode(ids[part.start : part.stop]) for part in (layout.system, layout.instruction)]
    assert words == ["<s>USER: ", "is it?"]
    assert vlm.adapter.tokenizer.decode(ids[layout.answer.start :]).strip() == "Yes"


def test_selections_average_what_they_name(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    read = vlm.attend(pictures[0], "q", "abc")
    expected = read.weights[[0, 2]][:, 1][:, [0, 1]].mean((0, 1)).reshape(4, 4).numpy()
    np.testing.assert_allclose(read.grids(layers=[0, 2], heads=1, rows=[0, 1])[0], expected, rtol=1e-6)
    only = vlm.attend(pictures[0], "q", "abc", layers=[0, -1])
    assert torch.equal(only.weights, read.weights[[0, 2]])


def test_several_pictures_have_their_own_maps(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    read = vlm.attend(pictures[:3], "q")
    for index, picture in enumerate(pictures[:3]):
        assert read.heatmap(index).shape == (picture.height, picture.width)
    assert read.weights.shape[-1] == 48
    x, y = read.peak(1)
    row, column = (int(axis[0]) for axis in np.nonzero(read.heatmap(1) == read.heatmap(1).max()))
    left, top = read.layout.images[1].views[0].to_pixels.cell(x, y)
    assert read.heatmap(1)[int(y), int(x)] == read.heatmap(1)[row, column]
    assert 0 <= left <= 4
    assert 0 <= top <= 4


BAD = [
    ({"rows": "answer"}, "no answer to read"),
    ({"rows": "zebra"}, "do not stand in the prompt"),
    ({"rows": " "}, "do not stand in the prompt"),
    ({"layers": 3}, "no layer 3"),
    ({"layers": []}, "No layer is chosen"),
    ({"layers": True}, "no layer True"),
    ({"layers": ["a"]}, "no layer a"),
    ({"rows": 3}, "do not stand in the prompt"),
    ({"answer": " "}, "empty"),
    ({"answer": []}, "empty"),
    ({"answer": 5}, "list of token ids, not int"),
    ({"answer": ["a"]}, "whole number in 0..259"),
    ({"answer": [10**6]}, "not 1000000"),
    ({"answer": [-1]}, "not -1"),
    ({"answer": "\ud800"}, "An answer holds half a character"),
    ({"prompt": "\ud800"}, "A prompt holds half a character"),
    ({"image": None}, "no picture"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests(vlm: mmattn.VLM, pictures: list[Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.attend(**{"image": pictures[0], "prompt": "what?", **change})


@pytest.mark.parametrize("selection", [{"image": 1}, {"image": -1}, {"heads": 4}, {"rows": [0, 5]}])
def test_bad_selections(vlm: mmattn.VLM, pictures: list[Any], selection: dict[str, Any]) -> None:
    with pytest.raises(MmattnError, match="There is no"):
        vlm.attend(pictures[0], "what?").heatmap(**selection)


def test_overlay_keeps_the_picture_where_it_is_cold(pictures: list[Any], tmp_path: Any) -> None:
    picture = pictures[1]
    heat = np.zeros((60, 120), dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(overlay(picture, heat)), np.asarray(picture))
    heat[:10, :10] = 1
    changed = np.asarray(overlay(picture, heat)) != np.asarray(picture)
    assert changed[:10, :10].any(-1).mean() > 0.9
    assert not changed[10:].any()
    path = save_overlay(tmp_path / "new" / "o.png", picture, heat, "a $title^ with <odd> signs", [(1, 2, 30, 40)])
    assert path.stat().st_size > 1000
    named = save_overlay(tmp_path / "bare", picture, heat)
    assert named == tmp_path / "bare.png"
    assert named.stat().st_size > 1000
    with pytest.raises(MmattnError, match="60 x 120"):
        overlay(picture, heat.T)
    with pytest.raises(MmattnError, match="Cannot write"):
        save_overlay(tmp_path / "o.unknown", picture, heat)


def test_overlay_without_an_ending_becomes_a_png(pictures: list[Any], tmp_path: Any) -> None:
    heat = np.zeros((60, 120), dtype=np.float32)
    path = save_overlay(tmp_path / "map", pictures[1], heat)
    assert path == tmp_path / "map.png"
    assert [one.name for one in tmp_path.iterdir()] == ["map.png"]
    with pytest.raises(MmattnError, match="is a folder"):
        save_overlay(tmp_path, pictures[1], heat)
