"""Methods that compare branches, against their equations: full forwards of stock models, numpy for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mmattn
from mmattn.decoding import IAVA, ICD, M3ID, PAI, RBD, VCD, AvisC, Method
from mmattn.decoding.iava import irrelevant
from mmattn.decoding.sampling import stream
from tests.oracle import Whole, full_matrix
from tests.stock import comparable, eager_maps, inputs_of, is_t5
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

TOKENS = 3


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return comparable(request.param)


class Stock:
    """Next-token scores (V,) of a plain transformers model for one sample and what has been said so far."""

    def __init__(self, vlm: mmattn.VLM, picture: Any, prompt: str) -> None:
        self.vlm, self.picture, self.prompt = vlm, picture, prompt

    def inputs(self, prompt: str | None = None, blind: bool = False) -> dict[str, torch.Tensor]:
        prompt = self.prompt if prompt is None else prompt
        if blind and self.vlm.adapter.mixed:
            inputs = dict(self.vlm.processor.tokenizer([prompt], return_tensors="pt"))
            return {**inputs, "decoder_input_ids": torch.zeros(1, 1).long()} if is_t5(self.vlm) else inputs
        if blind:
            talk = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
            return dict(self.vlm.processor(text=[self.vlm.processor.apply_chat_template(talk)], return_tensors="pt"))
        return inputs_of(self.vlm, [[self.picture]], [prompt])

    def __call__(
        self,
        answer: list[int],
        inputs: dict[str, torch.Tensor] | None = None,
        hidden: Collection[int] = (),
        zeroed: Collection[int] = (),
    ) -> NDArray[np.float64]:
        inputs = dict(self.inputs() if inputs is None else inputs)
        blind = "pixel_values" not in inputs or inputs["pixel_values"] is None
        model = self.vlm.model.language_model if blind and self.vlm.adapter.mixed else self.vlm.model
        image = (inputs["input_ids"][0] == self.vlm.adapter.image_token_id).nonzero()[:, 0]
        said = torch.tensor([answer], dtype=torch.long)
        if is_t5(self.vlm):
            inputs["decoder_input_ids"] = torch.cat([inputs["decoder_input_ids"], said], 1)
        else:
            for name, more in (("input_ids", said), ("attention_mask", torch.ones_like(said))):
                inputs[name] = torch.cat([inputs[name], more], 1)
            if "mm_token_type_ids" in inputs:
                kinds = inputs["mm_token_type_ids"]
                inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(said)], 1)
        if hidden:
            if "image_grid_thw" in inputs:  # else positions would not count what is hidden
                kinds = {name: inputs[name] for name in ("mm_token_type_ids",) if name in inputs}
                grid = inputs["image_grid_thw"]
                inputs["position_ids"] = model.model.get_rope_index(
                    inputs["input_ids"], image_grid_thw=grid, attention_mask=inputs["attention_mask"], **kinds
                )[0]
            inputs["attention_mask"] = inputs["attention_mask"].clone()
            inputs["attention_mask"][0, image[list(hidden)]] = 0
        places = image[list(zeroed)]
        reader = self.vlm.model.language_model.encoder if is_t5(self.vlm) else self.vlm.adapter.decoder
        hook = reader.register_forward_pre_hook(_zeroing(places, list(zeroed)), with_kwargs=True)
        try:
            with torch.no_grad():
                logits: torch.Tensor = model(**inputs).logits[0, -1]
        finally:
            hook.remove()
        return logits.double().numpy()

    def looks(self, prompt: str) -> NDArray[np.float64]:
        """`maps`, mean over layers: (N,)."""
        return self.maps(prompt).mean(0)

    def maps(self, prompt: str) -> NDArray[np.float64]:
        """Attention of the prompt's last token on image tokens, mean over heads: (layers, N)."""
        inputs = self.inputs(prompt)
        image = inputs["input_ids"][0] == self.vlm.adapter.image_token_id
        return eager_maps(self.vlm, inputs)[:, 0, :, -1].mean(1)[:, image].double().numpy()


def _zeroing(places: torch.Tensor, numbers: list[int]) -> Callable[..., Any]:
    """Sets features to 0: at `places` of the sequence, and at image tokens `numbers` where deeper layers get some."""

    def hook(_module: Any, args: Any, given: dict[str, Any]) -> Any:
        if len(places):
            embeds = given["inputs_embeds"].clone()
            embeds[0, places] = 0
            given = {**given, "inputs_embeds": embeds}
            if given.get("deepstack_visual_embeds"):
                deeper = [one.clone() for one in given["deepstack_visual_embeds"]]
                for one in deeper:
                    one[numbers] = 0
                given["deepstack_visual_embeds"] = deeper
        return args, given

    return hook


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def cut(out: NDArray[np.float64], plain: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    p = np.exp(log_softmax(plain))
    return np.where(p >= beta * p.max(), out, -np.inf)


def pai(method: PAI, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    inputs = stock.inputs()
    first = 0 if is_t5(stock.vlm) else inputs["input_ids"].shape[1] - 1

    def change(whole: Whole) -> torch.Tensor:
        scores = whole.scores.clone()
        if method.start <= whole.layer < method.end:
            part = scores[:, :, first:, : whole.image.shape[1]]
            mine = whole.image[:, None, None, :].expand_as(part)
            part[mine] += method.alpha * part[mine].abs()
        return scores.softmax(-1).nan_to_num(0)

    ids = torch.nn.functional.pad(inputs["input_ids"], (0, 0 if is_t5(stock.vlm) else len(answer)))
    with full_matrix(stock.vlm, ids, change):
        z = stock(answer)
    s, u = log_softmax(z), log_softmax(stock(answer, stock.inputs(blind=True)))
    return cut(method.gamma * (s - u) + u, z, method.beta)


def icd(method: ICD, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    z, other = stock(answer), stock(answer, stock.inputs(f"{method.role} {stock.prompt}"))
    return cut((1 + method.alpha) * z - method.alpha * other, z, method.beta)


def m3id(method: M3ID, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    c, u = log_softmax(stock(answer)), log_softmax(stock(answer, stock.inputs(blind=True)))
    g = np.exp(-method.rate * (len(answer) + 1))
    gate = c.max() < np.log(method.alpha)
    return cut(c + gate * (1 - g) / g * (c - u), c, method.beta)


def iava(method: IAVA, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    general, asked = stock.looks(method.general), stock.looks(stock.prompt)
    level = general.mean() + method.lam * general.std()
    kept = [i for i in range(len(asked)) if general[i] > level and asked[i] < general[i]]
    if not kept:
        order = np.argsort(asked - general)[: max(1, round(method.share * len(asked)))]
        kept = [i for i in order if asked[i] < general[i]]
    hidden = [i for i in range(len(asked)) if i not in kept] if kept else []
    z = stock(answer)
    return cut((1 + method.alpha) * z - method.alpha * stock(answer, hidden=hidden), z, method.beta)


def avisc(method: AvisC, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    maps = stock.maps(stock.prompt)
    shares = maps.sum(1) / maps.sum()
    chosen: list[int] = []
    for layer in np.argsort(-shares):
        chosen.append(int(layer))
        if shares[chosen].sum() >= method.gamma:
            break
    drawn = maps[chosen].mean(0)
    low = np.flatnonzero(drawn < drawn.mean() + method.lam * drawn.std()).tolist()
    z = stock(answer)
    return cut((1 + method.alpha) * z - method.alpha * stock(answer, zeroed=low), z, method.beta)


def rbd(method: RBD, stock: Stock, answer: list[int]) -> NDArray[np.float64]:
    inputs = stock.inputs()
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.5e-2 - 1e-5) + 1e-5
    kept = np.prod(1 - betas[: method.noise_step + 1])
    sample = mmattn.adapters.Sample((stock.picture,), stock.prompt)
    clean = stock.vlm.adapter.prepare([sample])[0].pixels[0].values
    eps = torch.randn(clean.shape, generator=stream(0, "branch noised picture", sample.image_keys[0]))
    noised = (np.sqrt(kept) * clean + np.sqrt(1 - kept) * eps).view_as(inputs["pixel_values"]).float()
    looks = stock.looks(stock.prompt)
    hidden = np.argsort(looks)[: len(looks) - max(1, round(method.share * len(looks)))]
    z, text = stock(answer), stock(answer, {**inputs, "pixel_values": noised})
    main = stock(answer, hidden=hidden.tolist())
    return cut(z + method.alpha_v * (main - z) + method.alpha_t * (z - text), z, method.beta)


CASES: list[tuple[Method, Callable[..., Any]]] = [
    (PAI(alpha=0.7, gamma=2.0, beta=0.05, start=1, end=3), pai),
    (PAI(alpha=0.9, gamma=1.5, beta=0.0, start=0), pai),
    (ICD(alpha=2.0, beta=0.02), icd),
    (M3ID(rate=0.5, alpha=0.9), m3id),
    (M3ID(rate=0.9, alpha=1.0, beta=0.1), m3id),
    (IAVA(alpha=3.0, beta=0.01, lam=0.3), iava),
    (IAVA(alpha=3.0, beta=0.01, lam=9.0, share=0.3), iava),
    (AvisC(alpha=3.0, beta=0.01, gamma=0.5, lam=0.5), avisc),
    (AvisC(alpha=2.0, beta=0.01, gamma=0.2, lam=0.0), avisc),
    (RBD(alpha_t=1.5, alpha_v=2.0, share=0.3, beta=0.01, noise_step=900), rbd),
]


@pytest.mark.parametrize(("method", "equation"), CASES, ids=[f"{one.name}{at}" for at, (one, _) in enumerate(CASES)])
def test_tokens_follow_the_equation(
    family: mmattn.VLM, pictures: list[Any], method: Any, equation: Callable[..., NDArray[np.float64]]
) -> None:
    pairs = list(zip(pictures[:2], PROMPTS[:2], strict=True))
    got = family.generate(pictures[:2], PROMPTS[:2], method=method, max_new_tokens=TOKENS, stop_token_ids=[])
    for one, pair in zip(got, pairs, strict=True):
        stock = Stock(family, *pair)
        for step, token in enumerate(one.token_ids):
            scores = equation(method, stock, list(one.token_ids[:step]))
            assert scores[token] >= scores.max() - 1e-4
            assert np.isfinite(scores[token])


def test_the_cases_bite(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Each of them changes what a model says; else agreement would prove nothing."""
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_token_ids": []}
    plain = vlm.generate(pictures, PROMPTS, **settings)
    for method, _ in CASES:
        assert vlm.generate(pictures, PROMPTS, method=method, **settings) != plain, method.label


def test_rbd_without_its_visual_branch_is_vcd(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    ours = family.generate(pictures[:3], PROMPTS[:3], method=RBD(2, 0, beta=0.01, noise_step=999), **settings)
    assert ours == family.generate(pictures[:3], PROMPTS[:3], method=VCD(2, 0.01, 999), **settings)


def test_iava_with_the_same_instruction_twice_is_plain(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    ours = family.generate(pictures[:3], ["what?"] * 3, method=IAVA(alpha=3, general="what?"), **settings)
    assert ours == family.generate(pictures[:3], ["what?"] * 3, **settings)


def test_irrelevant_tokens() -> None:
    general = torch.tensor([1.0, 5.0, 1.0, 4.0, 1.0])
    asked = torch.tensor([0.5, 3.0, 1.0, 4.5, 1.0])
    assert irrelevant(general, asked, 0.8, 0.1).tolist() == [False, True, False, False, False]
    assert irrelevant(general, asked, 9.0, 0.4).tolist() == [True, True, False, False, False]
    assert not irrelevant(general, general, 0.5, 0.5).any()
    assert not irrelevant(general, asked, 9.0, 0.0).any()
