"""DoLa and DeCo against their equations: hidden states of stock models, and the head, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mmattn
from mmattn.decoding import DeCo, DoLa, Method, Sampling, Step
from mmattn.decoding.fast import LANES
from mmattn.decoding.requests import Options
from mmattn.errors import MmattnError
from tests.stock import comparable, is_t5
from tests.test_contrasts import Stock, cut, log_softmax
from tests.test_families import PROMPTS
from tests.test_generate import decoder_calls
from tests.tiny import FAMILIES, tiny_llava

Array = NDArray[np.float64]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return comparable(request.param)


def states(stock: Stock, answer: list[int]) -> tuple[Array, list[Array]]:
    """Scores (V,), and the last token's state (D,) before the first layer and after each: the last one is normed."""
    model = stock.vlm.model
    kept: list[torch.Tensor] = []
    decoder = model.language_model.decoder if is_t5(stock.vlm) else stock.vlm.adapter.decoder
    handle = decoder.register_forward_pre_hook(
        lambda _module, args, given: (args, {**given, "output_hidden_states": True}), with_kwargs=True
    )
    other = decoder.register_forward_hook(lambda _module, _args, out: kept.extend(out.hidden_states))
    try:
        scores = stock(answer)
    finally:
        handle.remove()
        other.remove()
    assert len(kept) == 4
    return scores, [one[0, -1].double().numpy() for one in kept]


def read(vlm: mmattn.VLM, state: Array, normed: bool) -> Array:
    """The head's scores (V,) of a state that has not gone through all layers."""
    model = vlm.model.language_model if vlm.adapter.mixed else vlm.model
    decoder = model.decoder if is_t5(vlm) else vlm.adapter.decoder
    if normed:
        norm = decoder.final_layer_norm if is_t5(vlm) else decoder.norm
        epsilon = norm.variance_epsilon
        state = state / np.sqrt((state**2).mean() + epsilon) * norm.weight.detach().double().numpy()
    if is_t5(vlm) and model.config.scale_decoder_outputs:
        state = state * model.model_dim**-0.5
    head: Array = model.lm_head.weight.detach().double().numpy()
    return head @ state


def dola(method: DoLa, stock: Stock, answer: list[int]) -> Array:
    z, hidden = states(stock, answer)
    p = np.exp(log_softmax(z))
    best, base = -np.inf, z
    low = [2] if is_t5(stock.vlm) else [0]  # its head is tied to the embeddings
    for layer in {"high": [1], "low": low, "0 1 2": [0, 1, 2], "1-2": [1, 2]}[method.layers]:
        early = read(stock.vlm, hidden[layer], bool(method.norm))
        q = np.exp(log_softmax(early))
        m = (p + q) / 2
        apart = sum((m * np.log(m / one)).sum() for one in (p, q)) / 2
        if apart > best:
            best, base = apart, early
    return cut(log_softmax(z) - method.alpha * log_softmax(base), z, method.beta)


def deco(method: DeCo, stock: Stock, answer: list[int]) -> Array:
    z, hidden = states(stock, answer)
    p = np.exp(log_softmax(z))
    kept: list[int] = []
    for token in np.argsort(-p)[: method.top_k]:
        kept.append(int(token))
        if p[kept].sum() >= method.top_p:
            break
    layers = {"auto": [2], "0-2": [0, 1, 2], "0 1": [0, 1]}[method.layers]
    read_out = [read(stock.vlm, hidden[layer], bool(method.norm)) for layer in layers]
    most = [np.exp(log_softmax(one))[kept].max() for one in read_out]
    at = int(np.argmax(most))
    out = np.full_like(z, -np.inf)
    out[kept] = z[kept] + method.alpha * most[at] * read_out[at][kept]
    return out


CASES: list[tuple[Method, Callable[..., Array]]] = [
    (DoLa(beta=0.001), dola),
    (DoLa("0 1 2", beta=0.001), dola),
    (DoLa("1-2", beta=0.001, norm=1, alpha=0.5), dola),
    (DoLa("low", beta=0.0), dola),
    (DeCo(alpha=20.0), deco),
    (DeCo(alpha=30.0, layers="0-2", top_k=50, top_p=0.99), deco),
    (DeCo(alpha=8.0, layers="0 1", norm=1, top_p=0.5), deco),
]


@pytest.mark.parametrize(("method", "equation"), CASES, ids=[f"{one.name}{at}" for at, (one, _) in enumerate(CASES)])
def test_tokens_follow_the_equation(
    family: mmattn.VLM, pictures: list[Any], method: Method, equation: Callable[..., Array]
) -> None:
    got = family.generate(pictures[:2], PROMPTS[:2], method=method, max_new_tokens=3, stop_token_ids=[])
    for one, picture, prompt in zip(got, pictures[:2], PROMPTS[:2], strict=True):
        stock = Stock(family, picture, prompt)
        for step, token in enumerate(one.token_ids):
            scores = equation(method, stock, list(one.token_ids[:step]))
            assert scores[token] >= scores.max() - 1e-4
            assert np.isfinite(scores[token])


def test_the_cases_bite(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_token_ids": []}
    plain = vlm.generate(pictures, PROMPTS, **settings)
    for method, _ in CASES:
        assert vlm.generate(pictures, PROMPTS, method=method, **settings) != plain, method.label


@pytest.mark.parametrize("rule", ["dola(layers='0 1 2', beta=0.001)", "deco(alpha=30, layers='0-2')"])
def test_edits_and_branches_of_the_prefill_go_along(family: mmattn.VLM, pictures: list[Any], rule: str) -> None:
    """The early states are those of the edited model, also where another branch takes part in the prefill."""
    settings: dict[str, Any] = {"max_new_tokens": 4, "stop_token_ids": []}
    for edit in ("boost(strength=6)", "vhr(alpha=4)"):
        both = family.generate(pictures[:3], PROMPTS[:3], method=f"{edit}+{rule}", **settings)
        singly = zip(pictures[:3], PROMPTS[:3], strict=True)
        assert both == [family.generate([i], [p], method=f"{edit}+{rule}", **settings)[0] for i, p in singly]
        assert both != family.generate(pictures[:3], PROMPTS[:3], method=rule, **settings)
    with pytest.raises(MmattnError, match="both rewrite"):
        mmattn.decoding.resolve(f"vcd+{rule}")


def test_a_shared_prefix_changes_nothing(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"method": "dola(layers='0 1 2')", "max_new_tokens": 4, "stop_token_ids": []}
    words = ["what is on the left?", "what is on the right?"]
    with decoder_calls(vlm) as calls:
        shared = vlm.generate(pictures[0], words, **settings)
    assert len(calls) == 5
    assert shared == vlm.generate(pictures[0], words, share=False, **settings)


def test_one_layer_for_the_batch_is_the_mean_choice() -> None:
    """Two samples whose own choices differ: the mean divergence takes that of the stronger one for both."""
    final = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    near, far = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 9.0])
    middling = torch.tensor([2.0, 0.0, 1.0])
    exits = torch.stack([torch.stack([near, far]), torch.stack([middling, near])])
    step = Step(final[:, None], torch.tensor(0), exits)
    own = DoLa(beta=0).combine(step)
    shared = DoLa(beta=0, shared=1).combine(step)
    expected = final.log_softmax(-1)
    torch.testing.assert_close(own, expected - torch.stack([far, middling]).log_softmax(-1))
    torch.testing.assert_close(shared, expected - torch.stack([far, near]).log_softmax(-1))


def test_candidates_by_depth() -> None:
    def of(method: Method, depth: int, tied: bool = False) -> list[int]:
        exits = method.exits(depth, tied)
        assert exits is not None
        return list(exits.layers)

    assert of(DoLa("high"), 32) == list(range(16, 32, 2))
    assert of(DoLa("low"), 32) == list(range(0, 16, 2))
    assert of(DoLa("low"), 32, tied=True) == list(range(2, 16, 2))
    assert of(DoLa("high"), 80) == list(range(60, 80, 2))
    assert of(DoLa("low"), 80) == list(range(0, 20, 2))
    assert of(DoLa("low"), 4, tied=True) == [2]
    assert of(DoLa("low"), 2, tied=True) == [1]
    assert of(DeCo(), 32) == list(range(20, 29))
    assert of(DeCo(), 8) == [5, 6, 7]


def test_a_shared_choice_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmattn.decoding import engine

    monkeypatch.setattr(LANES, "take", lambda *_: "a lane")

    def lane(method: str) -> object:
        vlm = mmattn.wrap(*tiny_llava())
        options = Options(mmattn.decoding.resolve(method), Sampling(), frozenset(), 0)
        batch = type("Batch", (), {"mask": torch.ones(1, 4)})
        return engine._lane(vlm.adapter, batch, options, [3], None)  # type: ignore[arg-type]

    assert lane("boost+dola") == "a lane"
    assert lane("boost+dola(shared=1)") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dola(layers='9')", "reads layer 9"),
        ("dola(layers='middle')", "does not know the layers"),
        ("deco(layers='1-2-3')", "does not know the layers"),
        ("deco(top_k=0)", "at least 1"),
        ("deco(layers='0-3')", "reads layer 3"),
    ],
)
def test_wrong_settings_are_told(vlm: mmattn.VLM, pictures: list[Any], text: str, words: str) -> None:
    with pytest.raises(MmattnError, match=words):
        vlm.generate(pictures[0], "q", method=text, max_new_tokens=1)
