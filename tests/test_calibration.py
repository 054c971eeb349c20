"""SID, ACT and CMAI against their equations over the full matrix, row by row in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mmattn
from mmattn.adapters import Sample
from mmattn.attention import rows
from mmattn.decoding import ACT, CMAI, SID
from mmattn.decoding.sid import LEAST, lowest
from mmattn.errors import MmattnError
from tests.oracle import Whole, full_matrix
from tests.stock import comparable, inputs_of, is_t5
from tests.test_contrasts import Stock, cut
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

Array = NDArray[np.float64]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return comparable(request.param)


def softmax(scores: Array) -> Array:
    """Of each row (..., S); rows that see nothing are 0."""
    weights = np.exp(scores - np.where(np.isfinite(scores), scores, -np.inf).max(-1, keepdims=True, initial=-1e9))
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))


def smallest(values: Array, image: list[int], share: float) -> set[int]:
    """The image tokens with the smallest values (S,), the first one of equals."""
    return set(sorted(image, key=lambda one: values[one])[: round(share * len(image))])


class Sid:
    """Prompt rows hide what the prompt's last row says, later rows what they say themselves."""

    def __init__(self, method: SID, prompt: int) -> None:
        self.method, self.prompt, self.kept = method, prompt, [set[int]()]

    def __call__(self, whole: Whole) -> torch.Tensor:
        scores = whole.scores[0].double().numpy().copy()
        image = np.flatnonzero(whole.image[0].numpy()).tolist()
        if whole.layer == self.method.start - 1:
            looks = softmax(scores).mean(0)
            last = [max(row, self.prompt - 1) for row in range(len(looks))]
            self.kept = [smallest(looks[row], image, self.method.share) for row in last]
        elif whole.layer >= self.method.start:
            for row, kept in enumerate(self.kept):
                hidden = [one for one in image if one not in kept]
                new = scores[:, row].copy()
                new[:, hidden] = -np.inf
                if np.isfinite(new).any():  # a row that would see nothing stays
                    scores[:, row] = new
        return torch.tensor(softmax(scores)[None]).float()


class Act:
    """The prompt's sinks, in all rows."""

    def __init__(self, method: ACT, prompt: int) -> None:
        self.method, self.prompt = method, prompt

    def __call__(self, whole: Whole) -> torch.Tensor:
        scores = whole.scores[0].double().numpy()
        weights = softmax(scores)
        if self.method.start <= whole.layer < 3 - self.method.spared:
            for head, rows in enumerate(weights):
                if self.method.heads == "all" or f"{whole.layer}:{head}" in self.method.heads.split():
                    self._calibrate(rows, scores[head], whole.image[0].numpy())
        return torch.tensor(weights[None]).float()

    def _calibrate(self, rows: Array, scores: Array, image: NDArray[np.bool_]) -> None:
        sinks = []
        for key in range(rows.shape[1]):
            seeing = [row for row in range(self.prompt) if np.isfinite(scores[row, key])]
            if seeing and rows[seeing, key].mean() > self.method.threshold:
                sinks.append(key)
        sinks = sinks[1:]
        every = self.method.on == "rest"
        others = [key for key in range(rows.shape[1]) if key not in sinks and (every or image[key])]
        for row in rows:
            if row[others].sum() > 0:
                freed = (1 - self.method.beta) * row[sinks].sum()
                row[others] += freed * row[others] / row[others].sum()
                row[sinks] *= self.method.beta


class Cmai:
    """Text rows, by what the prompt's words look at."""

    def __init__(self, method: CMAI, prompt: int) -> None:
        self.method, self.prompt = method, prompt

    def __call__(self, whole: Whole) -> torch.Tensor:
        weights = softmax(whole.scores[0].double().numpy())
        if whole.layer < self.method.start:
            return torch.tensor(weights[None]).float()
        mean = weights.mean(0)
        image = np.flatnonzero(whole.image[0].numpy()).tolist()
        words = np.flatnonzero(whole.rows[0].numpy()) if whole.rows.shape[1] > 1 else []
        for row in words if len(words) else range(len(mean)):
            focus = mean[row].copy()
            if len(words):
                focus = sum(mean[row, word] * mean[word] for word in words if word < self.prompt)
            low = list(smallest(focus, image, self.method.share))
            weights[:, row, low] *= self.method.factor
            weights[:, row] /= weights[:, row].sum(-1, keepdims=True)
        return torch.tensor(weights[None]).float()


CASES: list[tuple[Any, Callable[..., Any]]] = [
    (SID(alpha=4.0, beta=0.01, start=1, share=0.25), Sid),
    (SID(alpha=6.0, beta=0.01, start=2, share=0.0), Sid),
    (ACT(0.1, threshold=0.05, start=0, spared=0), Act),
    (ACT(0.0, threshold=0.04, start=1, spared=0, heads="0:1 1:2 2:0"), Act),
    (ACT(0.1, threshold=0.04, start=0, spared=0, on="image"), Act),
    (CMAI(share=0.75, start=0), Cmai),
    (CMAI(share=0.5, factor=0.1, start=1), Cmai),
]
IDS = [f"{one.name}{at}" for at, (one, _) in enumerate(CASES)]


def expected(method: Any, oracle: Callable[..., Any], stock: Stock, answer: list[int]) -> tuple[Array, Array]:
    """Scores (V,) of the edited forward, and those that the next token is chosen from."""
    inputs = stock.inputs()
    t5 = is_t5(stock.vlm)
    ids = torch.nn.functional.pad(inputs["input_ids"], (0, 0 if t5 else len(answer)))
    change = oracle(method, 1 if t5 else inputs["input_ids"].shape[1])
    with full_matrix(stock.vlm, ids, change, every_row=not isinstance(method, CMAI)):
        edited = stock(answer)
    if not isinstance(method, SID):
        return edited, edited
    z = stock(answer)
    return edited, cut((1 + method.alpha) * z - method.alpha * edited, z, method.beta)


@pytest.mark.parametrize(("method", "oracle"), CASES, ids=IDS)
def test_tokens_and_scores_follow_the_equation(
    family: mmattn.VLM, pictures: list[Any], method: Any, oracle: Callable[..., Any]
) -> None:
    words = PROMPTS[:2]
    got = family.generate(pictures[:2], words, method=method, max_new_tokens=3, stop_token_ids=[])[1].token_ids
    stock = Stock(family, pictures[1], words[1])
    edited, _ = expected(method, oracle, stock, [])
    ours = prefilled(family, pictures[1], words[1], method)
    np.testing.assert_allclose(ours[-1], edited, atol=1e-4, rtol=1e-4)
    if len(ours) > 1:
        np.testing.assert_allclose(ours[0], stock([]), atol=1e-4, rtol=1e-4)
    for step, token in enumerate(got):
        _, scores = expected(method, oracle, stock, list(got[:step]))
        assert scores[token] >= scores.max() - 1e-4
        assert np.isfinite(scores[token])


def prefilled(vlm: mmattn.VLM, picture: Any, prompt: str, method: Any) -> Array:
    """Scores (branches, V) of an edited prefill."""
    names = ("plain", *(branch.name for branch in method.branches()))
    prepared = vlm.adapter.prepare([Sample((picture,), prompt)] * len(names))
    with torch.inference_mode(), vlm.adapter.session(edits=method.edits(), branches=names) as session:
        batch = vlm.adapter.embed(prepared, [vlm.adapter.encode(one.pixels) for one in prepared])
        session.columns = batch.columns
        logits = vlm.adapter.logits(vlm.adapter.decode(batch)[:, -1])
    return logits.double().numpy()


@pytest.mark.parametrize(("method", "oracle"), CASES, ids=IDS)
def test_the_cases_bite(vlm: mmattn.VLM, pictures: list[Any], method: Any, oracle: Callable[..., Any]) -> None:
    stock = Stock(vlm, pictures[0], PROMPTS[0])
    edited, _ = expected(method, oracle, stock, [])
    assert np.abs(edited - stock([])).max() > 1e-2
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_token_ids": []}
    plain = vlm.generate(pictures, PROMPTS, **settings)
    assert vlm.generate(pictures, PROMPTS, method=method, **settings) != plain


@pytest.mark.parametrize(("method", "_oracle"), CASES, ids=IDS)
def test_portions_of_rows_change_nothing(
    vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch, method: Any, _oracle: Any
) -> None:
    at_once = prefilled(vlm, pictures[0], PROMPTS[0], method)
    monkeypatch.setattr(rows.Call, "portion", 1)
    np.testing.assert_allclose(prefilled(vlm, pictures[0], PROMPTS[0], method), at_once, atol=1e-5)


def test_reading_while_generating_sees_the_plain_branch(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 3, "stop_token_ids": []}
    method = SID(alpha=4.0, beta=0.01, start=1, share=0.25)
    got = family.generate(pictures[:2], PROMPTS[:2], method=method, capture=mmattn.Capture(), **settings)
    assert got == family.generate(pictures[:2], PROMPTS[:2], method=method, **settings)
    first = family.attend(pictures[0], PROMPTS[0], rows="last")
    assert got[0].attention is not None
    torch.testing.assert_close(got[0].attention.weights[:, :, 0], first.weights[:, :, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["act(beta=0, threshold=0.04, start=0, spared=0)", "cmai(share=0.9, start=0)"])
def test_plain_generate_and_the_engine_agree(family: mmattn.VLM, pictures: list[Any], text: str) -> None:
    from tests.stock import new_tokens

    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    with mmattn.edit(family.model, text):
        ids = new_tokens(family, inputs, **settings)
        static = new_tokens(family, inputs, cache_implementation="static", **settings)
    got = family.generate(pictures[:3], PROMPTS[:3], method=text, max_new_tokens=6, stop_token_ids=[1])
    for one, row in zip(got, ids, strict=True):
        assert list(one.token_ids) == row[: len(one.token_ids)]
    assert static == ids


def test_the_smallest_of_each_row() -> None:
    values = torch.tensor([[3.0, 1.0, 9.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    image = torch.tensor([[True, True, True, True, False], [False, True, True, False, False]])
    assert lowest(values, image, 0.5).nonzero().tolist() == [[0, 1], [0, 3], [1, 1]]
    assert not lowest(values, image, 0.0).any()
    assert torch.equal(lowest(values, image, 1.0), image)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sid(start=0)", "at least 1"),
        ("act(heads='9:0')", "a layer beyond the 3"),
        ("act(heads='1:7', start=0, spared=0)", "a head beyond the 4"),
        ("cmai(share=2)", "in 0..1"),
    ],
)
def test_wrong_settings_are_told(vlm: mmattn.VLM, pictures: list[Any], text: str, words: str) -> None:
    with pytest.raises(MmattnError, match=words):
        vlm.generate(pictures[0], "q", method=text, max_new_tokens=1)


def test_sid_edits_its_branch_alone() -> None:
    assert SID().edits()[0].branches == (LEAST,)
