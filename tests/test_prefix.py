"""Prompts about one picture share its prefill, and nobody can tell by the answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mmattn
from mmattn.adapters import SharedCache
from mmattn.decoding import resolve
from mmattn.decoding.branching import _probe
from mmattn.decoding.features import Features
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from tests.test_methods import STRONG
from tests.tiny import FAMILIES

WORDS = ["is there a dog?", "is there a cat on it?", "is there a dog or a very long snake on it?", "where?"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
METHODS = ["greedy", "vcd", "rbd", "iava", "avisc", "m3id", "pasta", "var", "pai", "vhr"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.12))


def _asked(vlm: mmattn.VLM, pictures: list[Any]) -> tuple[list[Any], list[str]]:
    """Several questions about each of some pictures, mixed, one picture with one question only, and words alone."""
    several = [pictures[2], pictures[0]][: vlm.adapter.max_images]
    images = [pictures[0], pictures[1]] * 3 + [several] * 2 + [pictures[3]]
    words = [WORDS[index // 2 % 4] for index in range(len(images))]
    return ([*images, None], [*words, "hello"])


def _tokens(vlm: mmattn.VLM, **given: Any) -> tuple[list[mmattn.Generation], int]:
    """Answers, and how many tokens went through the decoder's calls of several tokens."""
    count = 0

    def on_call(_module: Any, _given: Any, named: dict[str, Any], _out: Any) -> None:
        nonlocal count
        rows, width = named["inputs_embeds"].shape[:2]
        count += rows * width * (width > 1)

    hook = vlm.adapter.decoder.register_forward_hook(on_call, with_kwargs=True)
    try:
        return vlm.generate(**given), count
    finally:
        hook.remove()


@pytest.mark.parametrize("name", METHODS)
def test_the_answers_are_the_same(
    family: mmattn.VLM, pictures: list[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmattn.decoding.prefix.SAVING", -9)  # also where it does not pay
    images, prompts = _asked(family, pictures)
    method = resolve(STRONG.get(name, name))
    if method.probes() or any(branch.pixels or branch.hidden for branch in method.branches()):
        images, prompts = images[:-1], prompts[:-1]  # these need a picture
    given: dict[str, Any] = {"images": images, "prompts": prompts, "method": method, **SETTINGS}
    expected, before = _tokens(family, share=False, **given)
    found, after = _tokens(family, **given)
    assert found == expected
    if "instructblip" not in family.adapter.family:  # its features know the words: only equal prompts share
        assert (after == before) == (name in ("var", "pai", "vhr"))


def test_it_is_less_work(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    images, prompts = _asked(vlm, pictures)
    counts = [_tokens(vlm, images=images, prompts=prompts, share=share, **SETTINGS)[1] for share in (True, False)]
    assert counts[0] < 0.75 * counts[1]
    alone = [
        _tokens(vlm, images=images[:2], prompts=prompts[:2], share=share, **SETTINGS)[1] for share in (True, False)
    ]
    assert alone[0] == alone[1]


def test_prompts_that_only_tell_where_to_look_share_too(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """RBD, AvisC and IAVA ask where the model looks before they decode."""
    prompts = [letter * 3 for letter in "abcdefgh"]
    prepared = vlm.adapter.prepare([mmattn.adapters.Sample((pictures[0],), word) for word in prompts])
    requests = [Request(mmattn.adapters.Sample((), "-"), one, "", 0, 1, probes={"same": one}) for one in prepared]
    counts, looks = [], []
    for share in (True, False):
        sizes: list[int] = []
        hook = vlm.adapter.decoder.register_forward_hook(
            lambda _module, _given, named, _out, sizes=sizes: sizes.append(named["inputs_embeds"][..., 0].numel()),
            with_kwargs=True,
        )
        with torch.inference_mode():
            options = Options(resolve("rbd"), Sampling(), frozenset(), 0, share=share)
            looks.append(_probe(vlm.adapter, requests, Features(), options))
        hook.remove()
        counts.append(sum(sizes))
    assert counts[0] < 0.5 * counts[1]
    for one, other in zip(*looks, strict=True):
        assert list(one) == ["plain", "same"]
        for name, look in one.items():
            torch.testing.assert_close(look, other[name], atol=1e-6, rtol=1e-4)


def test_rows_kept_are_the_same(family: mmattn.VLM, pictures: list[Any]) -> None:
    images, prompts = _asked(family, pictures)
    given: dict[str, Any] = {"images": images, "prompts": prompts, "capture": mmattn.Capture(), **SETTINGS}
    for method in ("greedy", "boost(strength=4)"):
        expected = family.generate(share=False, method=method, **given)
        for one, other in zip(family.generate(method=method, **given), expected, strict=True):
            assert one == other
            assert one.attention is not None
            assert other.attention is not None
            assert torch.allclose(one.attention.weights, other.attention.weights, atol=1e-5)


def test_edits_in_some_layers_leave_the_rows_of_all(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    kept = mmattn.Capture()
    given: dict[str, Any] = {"method": "pasta(heads='1:0 1:1', on='image')", **SETTINGS}
    one = vlm.generate(pictures[0], "what?", capture=kept, **given)[0].attention
    assert one is not None
    assert len(one.weights) == vlm.adapter.depth


def test_a_cache_begins_with_copies_and_never_with_what_lay_there() -> None:
    other, mine = SharedCache(1), SharedCache(1, (torch.full((1, 2, 1, 9, 4), torch.nan),) * 2)
    given = torch.arange(24.0).view(1, 1, 6, 4)
    other.update(given, given, 0)
    mine.adopt(other, [(0, 1, 3), (0, 0, 5)], 5)
    assert torch.equal(mine.keys[0, 0, 0], torch.cat([torch.zeros(2, 4), given[0, 0, 1:4]]))
    assert torch.equal(mine.values[0, 1, 0], given[0, 0, :5])
    assert mine.get_seq_length() == 5


def test_features_are_kept_up_to_a_bound(vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [mmattn.adapters.Sample((picture,), "x") for picture in pictures[:3]]
    pixels = [one.pixels[0] for one in vlm.adapter.prepare(samples)]
    encoded: list[str] = []
    encode = vlm.adapter.encode
    monkeypatch.setattr(
        vlm.adapter,
        "encode",
        lambda some, shares=None: (encoded.extend(one.key for one in some), encode(some, shares))[1],
    )
    size = encode(pixels[:1])[0].nbytes
    features = Features(2 * size)
    for asked in ([0, 1], [0], [2], [0], [1]):
        found = features.of(vlm.adapter, {pixels[index].key: pixels[index] for index in asked})
        assert list(found) == [pixels[index].key for index in asked]
    assert encoded == [pixels[index].key for index in (0, 1, 2, 1)]
