"""Every method inside plain `generate`: the same tokens as in our own, or a refusal that says why."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import mmattn
from mmattn.decoding import resolve
from mmattn.errors import MmattnError
from tests.stock import inputs_of, is_t5, new_tokens
from tests.test_methods import NAMES, STRONG, refuses
from tests.tiny import FAMILIES

PROMPTS = ["what is on the left?", "is it?", "and where are all the cats?"]
TOKENS = 4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.12))


def _images(vlm: mmattn.VLM, pictures: list[Any]) -> list[list[Any]]:
    return [[pictures[0]], [pictures[1], pictures[3]][: vlm.adapter.max_images], [pictures[2]]]


def _stock(vlm: mmattn.VLM, inputs: dict[str, Any], method: Any, images: Any, **settings: Any) -> list[list[int]]:
    """By custom_generate, or, where a family hides its inputs from it, by the context."""
    settings = {"max_new_tokens": TOKENS, "do_sample": False, **settings}
    loop = mmattn.custom_generate(method, vlm.processor, images=images)
    if not vlm.adapter.mixed:
        return new_tokens(vlm, inputs, custom_generate=loop, **settings)
    from mmattn.custom import decoding

    with decoding(vlm.model, loop):
        return new_tokens(vlm, inputs, **settings)


def _ours(vlm: mmattn.VLM, images: Any, method: Any, **settings: Any) -> list[list[int]]:
    """With the stop token, and filled up as transformers does."""
    answers = vlm.generate(images, PROMPTS, method=method, max_new_tokens=TOKENS, **settings)
    rows = [[*one.token_ids, *([one.stop_token] if one.stop_token is not None else [])] for one in answers]
    width = max(map(len, rows))
    return [[*row, *[0] * (width - len(row))] for row in rows]


@pytest.mark.parametrize("name", ["greedy", *NAMES])
def test_plain_generate_says_what_ours_says(family: mmattn.VLM, pictures: list[Any], name: str) -> None:
    images = _images(family, pictures)
    method = resolve(STRONG.get(name, name))
    inputs = inputs_of(family, images, PROMPTS)
    if method.repaints:
        with pytest.raises(MmattnError, match="changes pictures before they are preprocessed"):
            _stock(family, inputs, method, images)
        return
    if refuses(family, name):
        return
    found = _stock(family, inputs, method, images)
    assert found == _ours(family, images, method)
    if name == "greedy":
        assert found == new_tokens(family, inputs, max_new_tokens=TOKENS, do_sample=False)


def test_answers_end_as_transformers_ends_them(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, _images(vlm, pictures), PROMPTS)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    whole = new_tokens(vlm, inputs, **settings)
    stops = [whole[0][2], whole[1][4]]
    loop = mmattn.custom_generate("greedy", vlm.processor)
    ended = new_tokens(vlm, inputs, eos_token_id=stops, **settings)
    assert new_tokens(vlm, inputs, eos_token_id=stops, custom_generate=loop, **settings) == ended
    assert ended != whole


def test_sampling_draws_as_ours_does(family: mmattn.VLM, pictures: list[Any]) -> None:
    images, inputs = _images(family, pictures), inputs_of(family, _images(family, pictures), PROMPTS)
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "top_k": 40}
    found = _stock(family, inputs, "vcd", images, **drawn)
    assert found == _ours(family, images, "vcd", **drawn)
    assert found != _ours(family, images, "vcd")
    alone = _stock(family, inputs, "vcd", None, **drawn)  # other draws, the same each time
    assert alone == _stock(family, inputs, "vcd", None, **drawn)


def test_without_the_pictures_themselves(family: mmattn.VLM, pictures: list[Any]) -> None:
    """What draws nothing is the same; noise is another, but that of the picture."""
    images, inputs = _images(family, pictures), inputs_of(family, _images(family, pictures), PROMPTS)
    for name in ("avisc", "pai", "vhr", "iava"):
        assert _stock(family, inputs, STRONG[name], None) == _ours(family, images, STRONG[name])


def test_anybody_who_calls_generate_decodes_by_the_method(family: mmattn.VLM, pictures: list[Any]) -> None:
    images = _images(family, pictures)
    inputs = inputs_of(family, images, PROMPTS)
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
    plain = new_tokens(family, inputs, **settings)
    with mmattn.edit(family.model, "boost(strength=9)", STRONG["m3id"], processor=family.processor):
        inside = new_tokens(family, inputs, **settings)
    assert inside == _ours(family, images, f"boost(strength=9)+{STRONG['m3id']}")
    assert inside != plain
    with mmattn.edit(
        family.model, processor=family.processor, emphasise=mmattn.emphasise([["what"], None, "cats"], 90)
    ):
        marked = new_tokens(family, inputs, **settings)
    assert marked == _ours(family, images, "greedy", emphasise=mmattn.emphasise([["what"], None, "cats"], 90))
    assert marked != plain
    assert "generate" not in vars(family.model)
    assert new_tokens(family, inputs, **settings) == plain


def test_other_threads_decode_plainly(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, _images(vlm, pictures), PROMPTS)
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
    plain, seen = new_tokens(vlm, inputs, **settings), []
    with pytest.raises(RuntimeError, match="inside"), mmattn.edit(vlm.model, STRONG["pai"], processor=vlm.processor):
        thread = threading.Thread(target=lambda: seen.append(new_tokens(vlm, inputs, **settings)))
        thread.start()
        thread.join()
        assert new_tokens(vlm, inputs, **settings) != plain
        raise RuntimeError("inside")
    assert seen == [plain]
    assert new_tokens(vlm, inputs, **settings) == plain


def test_prompts_of_another_shape(family: mmattn.VLM, pictures: list[Any]) -> None:
    """Their words cannot be told; methods that need none go on."""
    images = [[pictures[1]]]
    inputs = inputs_of(family, images, ["what is left of it?"])
    ids, mixed = inputs["input_ids"].clone(), family.adapter.mixed
    inputs["input_ids"] = torch.cat([ids[:, :-3], ids[:, -3:].flip(1)], 1)  # no template ends like this
    if mixed:
        inputs["qformer_input_ids"] = inputs["qformer_input_ids"].flip(1)
    found = _stock(family, inputs, STRONG["boost"], None)
    with mmattn.edit(family.model, STRONG["boost"]):
        assert found == new_tokens(family, inputs, max_new_tokens=TOKENS, do_sample=False)
    for name in ("icd", "m3id", "iava", "pasta"):
        with pytest.raises(MmattnError, match="cannot be told from this prompt"):
            _stock(family, inputs, STRONG[name], None)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "without beams"),
    ({"do_sample": True, "num_return_sequences": 2}, "without beams"),
    ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor cannot act beside vcd"),
    ({"max_time": 9.0}, "MaxTimeCriteria cannot act"),
    ({"return_dict_in_generate": True}, "return_dict_in_generate"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_work_is_refused(
    vlm: mmattn.VLM, pictures: list[Any], settings: dict[str, Any], words: str
) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    with pytest.raises(MmattnError, match=words):
        vlm.model.generate(
            **inputs, max_new_tokens=2, custom_generate=mmattn.custom_generate("vcd", vlm.processor), **settings
        )


def test_other_refusals(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])

    def generate(method: str = "vcd", **more: Any) -> Any:
        loop = mmattn.custom_generate(method, vlm.processor, **more)
        return vlm.model.generate(**inputs, max_new_tokens=2, custom_generate=loop)

    with pytest.raises(MmattnError, match="shows 1 pictures, not 2"):
        generate(images=[[pictures[0], pictures[1]]])
    with pytest.raises(MmattnError, match="do not tell where a box is"):
        generate("instaboost", emphasise=(0, 0, 20, 20))
    assert generate("instaboost", emphasise=(0, 0, 20, 20), images=[pictures[0]]) is not None
    with pytest.raises(MmattnError, match="Pass processor"), mmattn.edit(vlm.model, "boost", emphasise="what"):
        pass
    with mmattn.edit(vlm.model, "vcd", processor=vlm.processor), pytest.raises(MmattnError, match="streamer"):
        vlm.model.generate(**inputs, streamer=print)


def test_instructblip_hands_over_embeddings_only(pictures: list[Any]) -> None:
    for name in ("instructblip", "instructblip-t5"):
        vlm = mmattn.wrap(*FAMILIES[name]())
        inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
        assert is_t5(vlm) == (name == "instructblip-t5")
        loop = mmattn.custom_generate("vcd", vlm.processor)
        with pytest.raises(MmattnError, match="got embeddings"):
            new_tokens(vlm, inputs, custom_generate=loop, max_new_tokens=2)
