"""`ground` on every family: frames, token sources, the shared beginning, empty results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample
from mmattn.errors import MmattnError
from mmattn.grounding import Heads, Locator, Mean, Tag
from mmattn.grounding.locator import detail
from mmattn.grounding.reader import Job, Reader, _shared_length
from mmattn.grounding.tokens import KEY
from tests.grounding import oracle
from tests.stock import eager_maps, inputs_of, is_t5
from tests.tiny import FAMILIES, tiny_llava, tiny_llava_next

SIZES = [(56, 56), (120, 60), (57, 131), (600, 40), (40, 600), (9, 7), (3, 300), (336, 336)]
QUERIES = ["the dog", "a red cup", "Grüße"]
JSON = "What do I click to {query}?"  # the default one is longer than a Q-Former of 256 bytes reads
ANSWER = f'Sure: {{"action_type": "click", "{KEY}": "Sign in"}} done'


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param]())


def _picture(size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(sum(size))
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _saying(vlm: mmattn.VLM, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[int, ...]:
    """Let the model answer `text` to everything; returns its tokens."""
    ids = tuple(vlm.adapter.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(images: Any, prompts: Sequence[str], **_: Any) -> list[mmattn.Generation]:
        return [mmattn.Generation(text, ids, "stop") for _ in prompts]

    monkeypatch.setattr(vlm, "generate", generate)
    return ids


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", ["query", "last"])
def test_frames(family: mmattn.VLM, size: tuple[int, int], source: Any) -> None:
    if source == "query" and is_t5(family):
        pytest.skip("its prompt is read by the encoder")
    picture, (width, height) = _picture(size), size
    methods: list[Locator] = [Tag(tokens=source), Mean(tokens=source, threshold=0.01)]
    for method in methods:
        for found in family.ground(picture, QUERIES, method=method):
            assert found.heatmap.shape == (height, width)
            assert found.heatmap.dtype == np.float32
            assert 0 <= found.heatmap.min() <= found.heatmap.max() <= 1
            assert found.boxes
            assert found.reason == ""
            assert len(found.boxes) == len(found.scores)
            assert list(found.scores) == sorted(found.scores, reverse=True)
            assert found.scores[0] == 1
            for left, top, right, bottom in found.boxes:
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
            assert found.point is not None
            assert found.peak is not None
            left, top, right, bottom = found.boxes[0]
            assert found.point == ((left + right) / 2, (top + bottom) / 2)
            assert any(a <= found.peak[0] <= c and b <= found.peak[1] <= d for a, b, c, d in found.boxes)
            assert found.source == source


@pytest.mark.parametrize("size", SIZES[:5])
def test_the_map_is_the_oracles_on_eager_attention(family: mmattn.VLM, size: tuple[int, int]) -> None:
    if is_t5(family):
        pytest.skip("its prompt is read by the encoder")
    picture, query = _picture(size), "the dog"
    found = family.ground(picture, query)
    prompt = 'What is the bounding box of "the dog" in the image?'
    assert found.prompt == prompt
    assert "".join(found.tokens) == query
    inputs = inputs_of(family, [[picture]], [prompt])
    ids = inputs["input_ids"][0].tolist()
    letters = family.adapter.tokenizer(query, add_special_tokens=False)["input_ids"]
    start = max(at for at in range(len(ids)) if ids[at : at + len(letters)] == letters)
    maps = eager_maps(family, inputs)[:, 0, :, start : start + len(letters)].numpy()
    shown = family.adapter.prepare([Sample((picture,), prompt)])[0].layout.images[0]
    view, mixing, image = (
        detail(shown),
        None,
        [at for at, one in enumerate(ids) if one == family.adapter.image_token_id],
    )
    if shown.mixed:
        shares = family.attend(picture, prompt).shares[0]
        assert shares is not None
        mixing = shares.numpy()
    else:
        image = list(view.tokens)
    expected = oracle.tag_map(maps, image, list(view.tokens), (view.rows, view.columns), 10, mixing)
    np.testing.assert_allclose(found.heatmap, view.to_image(_inside(expected, view, size), size, False), atol=1e-4)


def _inside(level: Any, view: Any, size: tuple[int, int]) -> Any:
    """Cells in the padding do not count; the rest is normalised again."""
    for row in range(view.rows):
        for column in range(view.columns):
            (x0, y0), (x1, y1) = view.to_pixels.point(column, row), view.to_pixels.point(column + 1, row + 1)
            if x1 <= 0 or y1 <= 0 or x0 >= size[0] or y0 >= size[1]:
                level[row, column] = 0
    return level / level.max()


def test_a_value_in_the_answer_is_read_where_it_was_generated(
    family: mmattn.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = _picture((120, 60))
    ids = _saying(family, monkeypatch, ANSWER)
    found = family.ground(picture, "log on", method=Tag(tokens="generated", prompt=JSON))
    assert found.source == "generated"
    assert "".join(found.tokens) == "Sign in"
    assert found.answer == ANSWER
    # The rows are those that teacher forcing of the whole answer gives at these tokens.
    read = family.attend(picture, found.prompt, ids)
    at = ANSWER.index("Sign in")
    rows = list(range(at, at + len("Sign in")))
    view = detail(read.layout.images[0])
    cells = Mean().cells(
        mmattn.Attention(
            read.weights[:, :, rows], read.layout, tuple(rows), ("",) * 7, read.layers, read.depth, read.shares
        )
    )
    mean = family.ground(picture, "log on", method=Mean(tokens="generated", prompt=JSON))
    top = _inside(cells.copy(), view, picture.size)
    np.testing.assert_allclose(mean.heatmap, view.to_image(top, picture.size, False), atol=1e-4)


@pytest.mark.parametrize("answer", ["no idea", f'{{"{KEY}": 3}}', f'{{"{KEY}": "cut'])
def test_without_a_value_the_querys_words_are_read(
    family: mmattn.VLM, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    _saying(family, monkeypatch, answer)
    found = family.ground(_picture((56, 56)), "log on", method=Tag(tokens="generated", prompt=JSON))
    assert (found.source, found.answer) == ("query", answer)
    if is_t5(family):
        assert found.boxes == ()
        assert found.point is None
        assert found.reason.startswith("The answer holds no value that can be read")
    else:
        assert "".join(found.tokens) == "log on"
        assert found.point is not None


def test_an_empty_answer_falls_back_too(vlm: mmattn.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    _saying(vlm, monkeypatch, "")
    assert vlm.ground(_picture((56, 56)), "log on", method="tag(tokens='generated')").source == "query"


def test_the_model_is_asked_for_json(vlm: mmattn.VLM) -> None:
    found = vlm.ground(_picture((56, 56)), "log on", method="tag(tokens='generated', max_new_tokens=3)")
    assert "action_type" in found.prompt
    assert KEY in found.prompt
    assert found.answer == vlm.generate(_picture((56, 56)), found.prompt, max_new_tokens=3)[0].text


METHODS = ["tag", "mean", "mean(tokens='last')", "heads(chosen=[(2, 1), (0, 3)])", "contrast", "rollout"]


@pytest.mark.parametrize("method", METHODS)
def test_many_queries_are_each_query(family: mmattn.VLM, method: str) -> None:
    if is_t5(family):
        if method == "rollout":
            with pytest.raises(MmattnError, match="cannot be followed"):
                family.ground(_picture((56, 56)), "a", method="rollout(tokens='last')")
            return
        method = f"{method[:-1]}, tokens='last')" if method.endswith("])") else "tag(tokens='last')"
    picture = _picture((120, 60))
    queries = [*QUERIES, "x", "a very much longer thing to look for"]
    together = family.ground(picture, queries, method=method)
    for batch_size in (1, 2):
        for one, other in zip(
            together, family.ground(picture, queries, method=method, batch_size=batch_size), strict=True
        ):
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=2e-4)
    for query, one in zip(queries, together, strict=True):
        alone = family.ground(picture, query, method=method)
        assert (one.query, one.tokens, one.prompt) == (query, alone.tokens, alone.prompt)
        np.testing.assert_allclose(one.heatmap, alone.heatmap, atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_after_a_shared_beginning_equal_those_of_whole_sequences(name: str) -> None:
    model, processor = FAMILIES[name]()
    vlm = mmattn.wrap(model.double(), processor)  # so that rounding does not hide a wrong row
    picture = _picture((120, 60))
    made = vlm.adapter.prepare([Sample((picture,), text) for text in ("is it?", "is there a dog in it?", "is")])
    jobs = [
        Job(one, (one.layout.prompt_length - 1,) if is_t5(vlm) else tuple(one.layout.instruction)[-2:]) for one in made
    ]
    assert (_shared_length(vlm.adapter, jobs) > 0) is not vlm.adapter.mixed
    together = list(Reader(vlm.adapter, picture, 2).rows(jobs))
    for job, one in zip(jobs, together, strict=True):
        alone = next(Reader(vlm.adapter, picture).rows([job]))
        assert one.positions == alone.positions == job.positions
        torch.testing.assert_close(one.weights, alone.weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen3-vl"])
def test_the_picture_is_encoded_and_prefilled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = mmattn.wrap(*FAMILIES[name]())
    encoded: list[int] = []
    encode = vlm.adapter.encode
    monkeypatch.setattr(
        vlm.adapter, "encode", lambda some, shares=None: encoded.append(len(some)) or encode(some, shares)
    )
    shapes: list[tuple[int, int]] = []
    hook = vlm.adapter.decoder.register_forward_hook(
        lambda _module, _args, kwargs, _out: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    queries = [f"thing {index}" for index in range(12)]
    found = vlm.ground(_picture((120, 60)), queries, batch_size=5)
    hook.remove()
    prepared = vlm.adapter.prepare([Sample((_picture((120, 60)),), one.prompt) for one in found])
    longest = max(one.layout.length for one in prepared)
    assert encoded == [1]
    assert [batch for batch, _ in shapes] == [1, 5, 5, 2]
    assert shapes[0][1] >= prepared[0].layout.images[0].tokens.stop
    assert all(shapes[0][1] + width <= longest for _, width in shapes[1:])


def test_rollout_is_the_product_of_eager_maps(vlm: mmattn.VLM) -> None:
    picture = _picture((56, 56))
    found = vlm.ground(picture, "the dog", method="rollout(tokens='last')")
    maps = eager_maps(vlm, inputs_of(vlm, [[picture]], [found.prompt]))[:, 0].mean(1).double().numpy()
    flow = np.eye(maps.shape[-1])
    for layer in maps:
        flow = (layer + np.eye(len(layer))) / 2 @ flow
    image = vlm.adapter.prepare([Sample((picture,), found.prompt)])[0].layout.images[0].tokens
    cells = flow[-1, image.start : image.stop].reshape(4, 4)
    np.testing.assert_allclose(found.heatmap[::14, ::14], cells / cells.max(), atol=1e-5)


@pytest.mark.parametrize("by", ["quotient", "difference"])
def test_contrast_is_against_the_general_instruction(vlm: mmattn.VLM, by: str) -> None:
    picture = _picture((56, 56))
    found = vlm.ground(picture, "the dog", method=f"contrast(by='{by}', layer_numbers=[1, 2], head_numbers=-1)")
    mine, plain = (
        vlm.attend(picture, prompt).grids(layers=[1, 2], heads=3)[0] for prompt in (found.prompt, "Describe the image.")
    )
    cells = mine / plain if by == "quotient" else np.maximum(mine - plain, 0)
    np.testing.assert_allclose(found.heatmap[::14, ::14], cells / cells.max(), atol=1e-4)


def test_heads_are_the_mean_of_the_chosen_ones(vlm: mmattn.VLM) -> None:
    picture = _picture((56, 56))
    found = vlm.ground(picture, "the dog", method=Heads(chosen=((2, 1), (-3, -1))))
    read = vlm.attend(picture, found.prompt)
    cells = (read.grids(layers=2, heads=1)[0] + read.grids(layers=0, heads=3)[0]) / 2
    np.testing.assert_allclose(found.heatmap[::14, ::14], cells / cells.max(), atol=1e-5)
    assert found.method["chosen"] == ((2, 1), (0, 3))


def test_nothing_found_is_a_result_with_its_reason(vlm: mmattn.VLM) -> None:
    """A question that says what the general instruction says changes nothing in the looking."""
    picture = _picture((70, 50))
    method = "contrast(by='difference', prompt='{query}', general='Describe the image.')"
    found = vlm.ground(picture, "Describe the image.", method=method)
    assert (found.boxes, found.scores, found.point, found.peak) == ((), (), None, None)
    assert "no attention" in found.reason
    assert found.heatmap.shape == (50, 70)
    assert not found.heatmap.any()
    assert found.to_json()["point"] is None


def test_words_before_the_picture_cannot_look_at_it() -> None:
    template = (
        "{% for message in messages %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endfor %}{% endfor %}<image>\n:"
    )
    found = mmattn.wrap(*tiny_llava(template=template)).ground(_picture((56, 56)), ["the dog", "a cat"])
    assert [one.point for one in found] == [None, None]
    assert "no attention" in found[0].reason
    assert "".join(found[1].tokens) == "a cat"


def test_a_template_that_strips_or_repeats_the_words(pictures: list[Any]) -> None:
    body = "{{ part['text'] | trim }}"
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}the dog: " + body + "{% endif %}{% endfor %}{% endfor %}:"
    )
    vlm = mmattn.wrap(*tiny_llava(template=template))
    found = vlm.ground(pictures[0], "the dog", method=Tag(prompt="  so the dogs, {query}  "))
    prepared = vlm.adapter.prepare([Sample((pictures[0],), found.prompt)])[0]
    assert "".join(found.tokens) == "the dog"
    expected = prepared.text.rindex("the dog")
    read = vlm.attend(pictures[0], found.prompt, rows="the dog")
    assert prepared.offsets[read.positions[0]][0] == expected
    cells = Tag().cells(read)
    np.testing.assert_allclose(found.heatmap[::14, ::14], cells / cells.max(), atol=1e-5)


def test_a_tiled_picture_shows_its_tiles_alone(pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*tiny_llava_next())
    found = vlm.ground(pictures[1], "the dog", method="mean")
    read = vlm.attend(pictures[1], found.prompt, rows="the dog")
    view = read.layout.images[0].views[1]
    cells = read.grids()[1]
    np.testing.assert_allclose(found.heatmap, view.to_image(cells / cells.max(), pictures[1].size, False), atol=1e-4)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": " "}, "query is empty"),
    ({"query": ["a", ""]}, "query is empty"),
    ({"query": [3]}, "must be text"),
    ({"query": "\ud800"}, "half a character"),
    ({"method": "nothing"}, "Unknown grounding method"),
    ({"method": "heads"}, "Nobody measured which heads"),
    ({"method": "heads(chosen=[(3, 0)])"}, "no layer 3"),
    ({"method": "heads(chosen=[(0, 4)])"}, "no head 4"),
    ({"method": "mean(layer_numbers=[-4])"}, "no layer -4"),
    ({"batch_size": 0}, "batch_size must be"),
    ({"image": "missing.png"}, "does not exist"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests(vlm: mmattn.VLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.ground(**{"image": _picture((56, 56)), "query": "the dog", **change})


def test_no_queries_no_results(vlm: mmattn.VLM) -> None:
    assert vlm.ground(_picture((56, 56)), []) == []


def test_an_encoders_words_cannot_be_rows() -> None:
    with pytest.raises(MmattnError, match='use tokens="last"'):
        mmattn.wrap(*FAMILIES["instructblip-t5"]()).ground(_picture((56, 56)), "the dog")


def test_words_that_leave_no_trace_are_searched_for(pictures: list[Any]) -> None:
    """A template that changes the words: what was said is then the whole prompt, and the last occurrence counts."""
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}dog {{ part['text'] | upper }} dog!{% endif %}{% endfor %}{% endfor %}:"
    )
    vlm = mmattn.wrap(*tiny_llava(template=template))
    found = vlm.ground(pictures[0], "dog")
    assert "".join(found.tokens) == "dog"
    lost = vlm.ground(pictures[0], "cat")
    assert (lost.point, lost.tokens) == (None, ())
    assert lost.reason == "The query's words were not found in the prompt."


def test_the_bundled_models_know_their_grounding_heads(tmp_path: Path) -> None:
    """They find nearly every single object of pictures that they were not chosen on."""
    from mmattn import scenes
    from mmattn.eval import load_instances
    from mmattn.eval.referring import single_objects

    bundled = scenes.dataset("val", root=tmp_path, count=6)
    targets = single_objects("val", load_instances(bundled.instances)).targets
    for name in ("scenes-llava", "scenes-qwen", "scenes-instructblip"):
        vlm = mmattn.load(name, device="cpu")
        right = 0
        for one in targets:
            found = vlm.ground(bundled.images / one.image, one.query, method="heads")
            assert found.method["chosen"] == vlm.grounding_heads
            assert found.point is not None
            left, top, far, low = one.box
            right += left <= found.point[0] <= far and top <= found.point[1] <= low
        assert right / len(targets) > 0.8
