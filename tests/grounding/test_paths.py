"""Attention flow against a linear programme, relevance against gradients of a plain eager model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linprog

import mmattn
from mmattn.adapters import Sample
from mmattn.errors import MmattnError
from mmattn.grounding.paths import flow
from tests.stock import attention, inputs_of, is_t5
from tests.tiny import FAMILIES


def _programme(layers: Any, sources: list[int], target: int) -> float:
    """The largest amount that can be sent, as a linear programme over all edges."""
    depth, length, _ = layers.shape
    nodes = (depth + 1) * length + 1
    edges = [
        ((layer + 1) * length + row, layer * length + column, (layers[layer, row, column] + (row == column)) / 2)
        for layer in range(depth) for row in range(length) for column in range(length)
    ]  # fmt: skip
    edges += [(nodes - 1, depth * length + one, 1.0) for one in sources]
    balance = np.zeros((nodes, len(edges)))
    for index, (start, end, _) in enumerate(edges):
        balance[start, index] -= 1
        balance[end, index] += 1
    inner = [node for node in range(nodes) if node not in (nodes - 1, target)]
    gain = -balance[target]
    return float(
        -linprog(
            gain, A_eq=balance[inner], b_eq=np.zeros(len(inner)), bounds=[(0, capacity) for _, _, capacity in edges]
        ).fun
    )


@pytest.mark.parametrize("sources", [[5], [3, 5]])
def test_flow_is_the_most_that_can_be_sent(sources: list[int]) -> None:
    random = np.random.default_rng(len(sources))
    layers = np.tril(random.dirichlet(np.full(7, 0.3), size=(3, 7)))
    layers /= layers.sum(-1, keepdims=True)
    expected = [_programme(layers, sources, target) for target in range(7)]
    np.testing.assert_allclose(flow(layers, sources, range(7)), expected, atol=1e-4)
    assert expected[6] == 0


def _picture() -> Image.Image:
    random = np.random.default_rng(4)
    return Image.fromarray(random.integers(0, 256, (60, 120, 3), dtype=np.uint8))


def test_flow_as_a_map(vlm: mmattn.VLM) -> None:
    found = vlm.ground(_picture(), "dog", method="flow(tokens='last')")
    prepared = vlm.adapter.prepare([Sample((_picture(),), found.prompt)])[0]
    inputs = inputs_of(vlm, [[_picture()]], [found.prompt])
    with attention(vlm, "eager"), torch.no_grad():
        maps = torch.stack(vlm.model(**inputs, output_attentions=True).attentions)[:, 0].mean(1).double().numpy()
    flows = flow(maps, [maps.shape[-1] - 1], prepared.layout.images[0].tokens)
    view = prepared.layout.images[0].views[0]
    cells = (flows / flows.max()).reshape(view.rows, view.columns).astype(np.float32)
    np.testing.assert_allclose(found.heatmap, view.to_image(cells, (120, 60), False), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens", ["last", "query"])
def test_relevance_is_that_of_a_plain_eager_model(name: str, tokens: str) -> None:
    model, processor = FAMILIES[name]()
    vlm = mmattn.wrap(model.double(), processor)
    method = f"relevance(tokens='{tokens}')"
    if is_t5(vlm):
        with pytest.raises(MmattnError, match="cannot be followed" if tokens == "last" else 'use tokens="last"'):
            vlm.ground(_picture(), "dog", method=method)
        return
    found = vlm.ground(_picture(), "dog", method=method)
    inputs = inputs_of(vlm, [[_picture()]], [found.prompt])
    ids = inputs["input_ids"][0].tolist()
    rows = [len(ids) - 1]
    if tokens == "query":
        letters = vlm.adapter.tokenizer("dog", add_special_tokens=False)["input_ids"]
        start = max(at for at in range(len(ids)) if ids[at : at + 3] == letters)
        rows = list(range(start, start + 3))
    with attention(vlm, "eager"), torch.enable_grad():
        out = vlm.model(**inputs, output_attentions=True)
        maps = getattr(out, "language_model_outputs", out).attentions
        slopes = torch.autograd.grad(out.logits[0, rows].amax(-1).sum(), maps)
    relevance = torch.eye(len(ids)).double()
    for one, slope in zip(maps, slopes, strict=True):
        relevance = relevance + (one[0] * slope[0]).clamp(min=0).mean(0).detach() @ relevance
    prepared = vlm.adapter.prepare([Sample((_picture(),), found.prompt)])[0]
    shown = prepared.layout.images[0]
    view = shown.views[-1]
    mean = relevance[rows].mean(0)
    if shown.mixed:
        share = vlm.attend(_picture(), found.prompt).shares[0]
        assert share is not None
        cells = (mean[shown.tokens.start : shown.tokens.stop] @ share.double()).numpy()
    else:
        cells = mean[view.tokens].numpy()
    level = cells.reshape(view.rows, view.columns)
    expected = view.to_image((level / level.max()).astype(np.float32), (120, 60), False)
    np.testing.assert_allclose(found.heatmap, expected, atol=1e-4)
    assert all(one.grad is None for one in vlm.model.parameters())
