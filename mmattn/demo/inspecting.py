"""A close look at one answer: signals of its words, sinks, and heads; as pictures rather than numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

import mmattn
from mmattn.decoding import VAR
from mmattn.demo.asking import checked
from mmattn.demo.drawing import heat, rendered, shown
from mmattn.demo.state import Picture, View
from mmattn.demo.watching import Sinks, sinks_of
from mmattn.grounding import overlay
from mmattn.signals import Signals, Word

INK, RISKY = "#8b93a3", 0.5  # a grey that can be read on light and on dark


@dataclass(frozen=True, eq=False)
class Inspected:
    """What the page remembers of an inspection."""

    model: str
    picture: Picture
    prompt: str
    var: VAR
    signals: Signals
    words: tuple[Word, ...]
    sinks: Sinks


def inspect(model: mmattn.VLM, name: str, picture: Picture | None, prompt: str, var: VAR) -> Inspected:
    """The model's own greedy answer, its signals, and the sinks that `var` sees.

    Raises:
        MmattnError: no picture, no question, or nothing was answered.
    """
    picture, prompt = checked(picture, prompt)
    signals = model.signals(picture.image, prompt)
    sinks = sinks_of(model, picture.image, prompt, var)
    return Inspected(name, picture, prompt, var, signals, signals.words(model.detector), sinks)


def marked(found: Inspected) -> list[tuple[str, str | None]]:
    """The answer, with the words that the detector takes for hallucinated."""
    text, at = found.signals.text, 0
    pieces: list[tuple[str, str | None]] = []
    for word in found.words:
        pieces.append((text[at : word.start], None))
        risky = word.risk is not None and word.risk >= RISKY
        pieces.append((text[word.start : word.end], "perhaps hallucinated" if risky else None))
        at = word.end
    return [(piece, label) for piece, label in [*pieces, (text[at:], None)] if piece]


def along_the_answer(found: Inspected) -> Image.Image:
    """Attention on the picture, lookback ratio and divergence of each token of the answer."""
    signals = found.signals
    figure, axes = _figure(9, 3.2)
    places = np.arange(len(signals.tokens))
    axes.bar(
        places, signals.image.mean(dim=(0, 1)).numpy(), color="#6366f1", alpha=0.75, label="attention on the picture"
    )
    if signals.lookback is not None:
        axes.plot(places, signals.lookback.mean(dim=(0, 1)).numpy(), "o-", color="#f59e0b", label="lookback ratio")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share (mean of layers and heads)")
    axes.set_xticks(
        places, [token.strip() or "·" for token in signals.tokens], rotation=60, ha="right", parse_math=False
    )
    if signals.divergence is not None:
        other = axes.twinx()
        _style(other)
        other.plot(places, signals.token_divergence().numpy(), "s--", color="#ec4899", label="divergence (T-VHD)")
        other.set_ylim(bottom=0)
        other.set_ylabel("divergence")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=INK)
    return rendered(figure)


def by_head(found: Inspected) -> Image.Image:
    """Layers by heads: attention on the picture, divergence, and what VAR would move."""
    maps: list[tuple[str, torch.Tensor]] = [("attention on the picture", found.signals.image.mean(-1))]
    if found.signals.divergence is not None:
        maps.append(("divergence without the picture (VHD)", found.signals.divergence.mean(-1)))
    maps.append(("attention that VAR moves", found.sinks.moved))
    depth, heads = maps[0][1].shape
    figure = Figure(
        figsize=(3.4 * len(maps), 1.2 + 2.6 * min(max(depth / heads, 0.6), 1.6)), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    for axes, (title, values) in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps, strict=True):
        _style(axes)
        drawn = axes.imshow(values.numpy(), cmap="viridis", aspect="auto", vmin=0, vmax=max(float(values.max()), 1e-3))
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.set_xticks(range(0, heads, max(heads // 8, 1)))
        axes.set_yticks(range(0, depth, max(depth // 8, 1)))
        bar = figure.colorbar(drawn, ax=axes, fraction=0.05)
        bar.ax.tick_params(colors=INK, labelsize=8)
    return rendered(figure)


def by_layer(found: Inspected) -> Image.Image:
    """Sinks of each layer, and the attention that VAR would take from them."""
    figure, axes = _figure(9, 2.6)
    layers = np.arange(len(found.sinks.sinks))
    axes.bar(layers, found.sinks.sizes.amax(-1).numpy(), color="#14b8a6", alpha=0.75, label="largest image token")
    axes.axhline(found.var.tau, color="#ef4444", ls="--", label=f"a sink above tau = {found.var.tau:g}")
    axes.set_xlabel("layer")
    axes.set_ylabel("normalised hidden state")
    axes.set_xticks(layers[:: max(len(layers) // 16, 1)])
    for layer, count in enumerate(found.sinks.sinks.sum(-1).tolist()):
        if count:
            axes.text(layer, float(found.sinks.sizes[layer].max()), f"{count}", ha="center", va="bottom", color=INK)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=INK)
    return rendered(figure)


def sink_map(found: Inspected, layer: int) -> Image.Image:
    """The size of each image token's state in one layer over the picture, sinks outlined."""
    sinks = found.sinks
    weights = sinks.sizes[layer][None, None, None]
    read = replace(sinks.read, held=weights, layers=(0,), depth=1)
    image = shown(found.picture.image)
    picture = overlay(image, heat(read, [0], View(), image.size), 0.7)
    layout = read.layout.images[0]
    if layout.mixed:  # a token is no place
        return picture
    draw, scale = ImageDraw.Draw(picture), image.width / found.picture.image.width
    flagged = {layout.tokens.start + place for place in sinks.sinks[layer].nonzero()[:, 0].tolist()}
    for view in layout.views:
        for number, token in enumerate(view.tokens):
            if token in flagged:
                row, column = divmod(number, view.columns)
                corners = *view.to_pixels.point(column, row), *view.to_pixels.point(column + 1, row + 1)
                draw.rectangle([side * scale for side in corners], outline="#ef4444", width=3)
    return picture


def told_of(found: Inspected) -> str:
    """A line about the sinks, as HTML."""
    counts = found.sinks.sinks.sum(-1)
    if not counts.any():
        return (
            f"No image token is a sink: none exceeds tau = {found.var.tau:g} in a sink dimension. "
            "Lower it to see which tokens come next; small models often have no sinks."
        )
    layer = int(counts.argmax())
    moved = float(found.sinks.moved.max())
    return f"{int(counts[layer])} sinks in layer {layer}; VAR moves up to {moved:.0%} of a head's attention."


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    """Readable on light and on dark."""
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(9)
    for spine in axes.spines.values():
        spine.set_color(INK)


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """One under the other on white, for an export."""
    width = max(image.width for image in images)
    page = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        page.paste(image, ((width - image.width) // 2, top), image.convert("RGBA"))
        top += image.height
    return page
