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
    ({"answer": " "}, "empty"),
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
