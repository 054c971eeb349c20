"""ControlMLLM: the activation against eager maps, its gradient against differences, the descent against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample, Shares
from mmattn.errors import MmattnError
from mmattn.referring import PRESETS, ControlMLLM, Region, preset
from mmattn.referring.latent import descend
from mmattn.referring.refer import _activation
from tests.stock import eager_maps, inputs_of, is_t5
from tests.tiny import FAMILIES

PROMPT = "What is it?"
BOX = (10, 5, 70, 40)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    model, processor = FAMILIES[request.param]()
    return mmattn.wrap(model.double(), processor)


def _picture(size: tuple[int, int] = (120, 60)) -> Image.Image:
    random = np.random.default_rng(sum(size))
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _function(vlm: mmattn.VLM, how: ControlMLLM) -> tuple[Any, torch.Tensor]:
    """The activation as a function of the latent, and a latent of 0."""
    picture = _picture()
    prepared = vlm.adapter.prepare([Sample((picture,), PROMPT)])[0]
    shares: Shares = {}
    with torch.no_grad():
        features = vlm.adapter.encode(prepared.pixels, shares)[0]
    region = Region.box(BOX, picture.size)
    width = vlm.model.get_input_embeddings().embedding_dim
    function = _activation(vlm.adapter, prepared, features, shares, region, how)
    return function, torch.zeros(len(features), width, dtype=torch.float64)


@pytest.mark.parametrize("how", [ControlMLLM(), ControlMLLM(rows="last", first_layer=0.34, end_layer=0.99)])
def test_the_activation_is_that_of_eager_maps(family: mmattn.VLM, how: ControlMLLM) -> None:
    function, latent = _function(family, how)
    with torch.no_grad():
        found = float(function(latent))
    picture = _picture()
    inputs = inputs_of(family, [[picture]], [PROMPT])
    maps = eager_maps(family, inputs)[:, 0].double()
    image = torch.tensor([one == family.adapter.image_token_id for one in inputs["input_ids"][0].tolist()])
    rows = slice(int(image.nonzero().max()) + 1, None) if how.rows == "text" and not is_t5(family) else slice(-1, None)
    layers = slice(None) if how.rows == "text" else slice(1, 3)
    looked = maps[layers, :, rows][..., image].mean(dim=(0, 1, 2))
    shown = family.adapter.prepare([Sample((picture,), PROMPT)])[0].layout.images[0]
    inside = torch.from_numpy(Region.box(BOX, picture.size).cells(shown)).double()
    placed = torch.ones_like(inside)
    if shown.mixed:
        share = family.attend(picture, PROMPT).shares[0]
        assert share is not None
        looked = looked @ share.double()
    else:
        known = {token for view in shown.views for token in view.tokens}
        placed = torch.tensor([float(token in known) for token in shown.tokens]).double()
    assert found == pytest.approx(float((looked * inside).sum() / (looked * placed).sum()), abs=1e-5)


def test_gradients_reach_every_image_token(family: mmattn.VLM) -> None:
    """Against central differences, along random directions."""
    function, start = _function(family, ControlMLLM())
    torch.manual_seed(0)
    start = 0.1 * torch.randn_like(start)
    point = start.clone().requires_grad_()
    slope = torch.autograd.grad(function(point), point)[0]
    assert (slope.abs().amax(-1) > 0).all()
    step = 3e-4 if is_t5(family) else 1e-2  # T5's scores are large; weights are float32, so no smaller ones
    for _ in range(3):
        along = torch.randn_like(start)
        along /= along.norm()
        with torch.no_grad():
            up, down = function(start + step * along), function(start - step * along)
        assert float((slope * along).sum()) == pytest.approx(float(up - down) / (2 * step), rel=0.02, abs=1e-7 / step)


def _bowl(point: torch.Tensor) -> torch.Tensor:
    """An activation with a known gradient."""
    return 1 / (1 + ((point - torch.tensor([[1.0, -2.0]], dtype=point.dtype)) ** 2).sum())


def _slope(point: Any, alpha: float) -> Any:
    """Of alpha (1 - activation)^2 at `point`, by hand."""
    away = point - np.array([[1.0, -2.0]])
    active = 1 / (1 + (away**2).sum())
    return -2 * alpha * (1 - active) * -(active**2) * 2 * away


def test_descent_takes_the_gradient_at_the_running_mean_and_adds_up_nothing_else() -> None:
    how = ControlMLLM(steps=3, rate=0.02, momentum=0.5, alpha=3.0, change=100)
    found = descend(how, _bowl, torch.zeros(1, 2, dtype=torch.float64))
    latent = np.zeros((1, 2))
    seen = [float(_bowl(torch.from_numpy(latent)))]
    for _ in range(3):
        moved = latent - 0.02 * _slope(latent, 3.0)
        latent = 0.5 * moved + 0.5 * latent
        seen.append(float(_bowl(torch.from_numpy(latent))))
    np.testing.assert_allclose(found.latent.numpy(), latent)
    assert found.activations == pytest.approx(seen)


def test_adam_is_that_of_torch() -> None:
    how = ControlMLLM(steps=4, rate=0.05, optimiser="adam", momentum=1, alpha=2.0, change=100)
    found = descend(how, _bowl, torch.zeros(1, 2, dtype=torch.float64))
    point = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([point], lr=0.05, betas=(0.9, 0.999), eps=1e-3)
    for _ in range(4):
        adam.zero_grad()
        (2.0 * (1 - _bowl(point)) ** 2).backward()  # type: ignore[no-untyped-call]
        adam.step()
    torch.testing.assert_close(found.latent, point.detach())


def test_it_stops_when_enough_has_changed_or_it_gets_worse() -> None:
    start = torch.zeros(1, 2, dtype=torch.float64)
    assert len(descend(ControlMLLM(steps=9, rate=0.05, alpha=3, change=0.01), _bowl, start).activations) < 5
    wild = descend(ControlMLLM(steps=9, rate=1e6, change=100), _bowl, start)
    assert wild.activations == (float(_bowl(start)),)
    assert not wild.latent.any()


@pytest.mark.parametrize(
    "place",
    [{"box": BOX}, {"point": (30, 20)}, {"scribble": [(10, 10), (60, 30)]}, {"mask": np.eye(60, 120)}],
    ids=lambda place: next(iter(place)),
)
def test_every_kind_of_place_draws_the_attention(vlm: mmattn.VLM, place: dict[str, Any]) -> None:
    how = ControlMLLM(steps=4, rate=0.1, optimiser="adam", momentum=1, change=100)
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    found = vlm.refer(_picture(), PROMPT, **place, version=how, max_new_tokens=3)
    assert found.activations[-1] > found.activations[0]
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())
    assert all(one.grad is None for one in vlm.model.parameters())


@pytest.mark.parametrize("contrast", [0.0, 0.7])
def test_without_steps_it_is_the_plain_model(family: mmattn.VLM, contrast: float) -> None:
    how = ControlMLLM(steps=0, contrast=contrast)
    found = family.refer(_picture(), PROMPT, box=BOX, version=how, max_new_tokens=5)
    assert found.answer == family.generate(_picture(), PROMPT, max_new_tokens=5)[0]
    assert len(found.activations) == 1


def test_the_answer_is_decoded_with_the_latent(vlm: mmattn.VLM) -> None:
    """Against whole forwards of the language model on embeddings with the latent in them."""
    how = ControlMLLM(steps=3, rate=0.5, optimiser="adam", momentum=1, change=100, contrast=0.6, beta=0.1)
    found = vlm.refer(_picture(), PROMPT, box=BOX, version=how, max_new_tokens=5)
    sample = Sample((_picture(),), PROMPT)
    prepared = vlm.adapter.prepare([sample])[0]
    with torch.no_grad():
        features = vlm.adapter.encode(prepared.pixels)[0]
    function = _activation(vlm.adapter, prepared, features, {}, Region.box(BOX, (120, 60)), how)
    latent = descend(how, function, torch.zeros(len(features), 48)).latent
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(5):
            words = torch.cat([prepared.ids, torch.tensor(ids, dtype=torch.long)])[None]
            embeds = vlm.model.get_input_embeddings()(words)
            scores = []
            for more in (latent, torch.zeros_like(latent)):
                mixed = embeds.clone()
                mixed[0, list(prepared.layout.image_tokens)] = features + more
                scores.append(vlm.model(inputs_embeds=mixed).logits[0, -1])
            mine, plain = scores
            joined = 1.6 * mine - 0.6 * plain
            joined[mine.softmax(-1) < 0.1 * mine.softmax(-1).max()] = -torch.inf
            ids.append(int(joined.argmax()))
    assert list(found.answer.token_ids) == ids[: len(found.answer.token_ids)]
    assert found.text == found.answer.text
    assert len(found.answer.token_ids) == 5 or ids[len(found.answer.token_ids)] == 2


def test_the_published_versions() -> None:
    assert preset("controlmllm") == ControlMLLM()
    assert PRESETS["controlmllm++"].layers(32) == tuple(range(14, 26))
    assert PRESETS["controlmllm++-qwen"].layers(28) == tuple(range(12, 28))
    assert ControlMLLM(first_layer=0.99, end_layer=1).layers(2) == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": None}, "given by nothing"),
        ({"point": (1, 1)}, "given by box and point"),
        ({"version": "controlmllm2"}, "Did you mean controlmllm"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"box": (500, 0, 600, 10)}, "covers nothing"),
        ({"box": (0, 0, 5, 60)}, "cuts its edges away"),
    ],
)
def test_bad_requests(vlm: mmattn.VLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.refer(**{"image": _picture(), "prompt": PROMPT, "box": BOX, **change})
    with pytest.raises(MmattnError, match="first_layer must be below"):
        ControlMLLM(first_layer=0.5, end_layer=0.5)
    with pytest.raises(MmattnError, match="Unknown optimiser"):
        ControlMLLM(optimiser="sgd")  # type: ignore[arg-type]
