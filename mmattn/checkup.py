"""Does what the toolkit assumes of a model hold for this one? A quick look on loading, a thorough one on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mmattn.adapters import Sample
from mmattn.attention import RowCapture
from mmattn.decoding.boost import Boost
from mmattn.errors import MmattnError, first_line

if TYPE_CHECKING:
    from mmattn.vlm import VLM

PROMPT = "What is in the image?"

# How far two ways of computing the same thing may be apart, by the precision of the weights.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        name: what should hold.
        holds: whether it does; None where it does not apply to the family.
        detail: what was seen.
    """

    name: str
    holds: bool | None
    detail: str


def glance(vlm: VLM) -> None:
    """A small picture and a question make the same tokens as the processor's own; takes milliseconds.

    Raises:
        MmattnError: they do not.
    """
    finding = _tokens(vlm)
    if not finding.holds:
        raise MmattnError(
            f"{vlm.name} is not laid out as the {vlm.adapter.family} family is ({finding.detail})",
            "Use the processor that belongs to the model, or report the model.",
        )


def inspect(vlm: VLM) -> list[Finding]:
    """Everything: tokens, rows that sum to 1, capture against eager, edits, and the frame of heat maps."""
    checks: tuple[Callable[[VLM], Finding], ...] = (_tokens, _sums, _eager, _edits, _frame)
    findings = []
    for check in checks:
        try:
            findings.append(check(vlm))
        except (MmattnError, RuntimeError, ValueError) as error:  # one failure must not hide the others
            findings.append(Finding(check.__name__.strip("_"), False, first_line(error)))
    return findings


def _picture(mark: tuple[int, int] | None = None) -> Image.Image:
    """A grey picture, 160 x 120 pixels, with a bright square around `mark`."""
    pixels = np.full((120, 160, 3), (100, 120, 110), dtype=np.uint8)
    if mark is not None:
        x, y = mark
        pixels[y - 8 : y + 8, x - 8 : x + 8] = (255, 0, 255)
    return Image.fromarray(pixels)


def _tokens(vlm: VLM) -> Finding:
    prepared = vlm.adapter.prepare([Sample((_picture(),), PROMPT)])[0]
    theirs = vlm.adapter.stock_inputs(_picture(), PROMPT)["input_ids"][0].tolist()
    ours = prepared.ids[: len(theirs)].tolist()
    images = len(prepared.layout.image_tokens)
    return Finding("same tokens as the processor's own", ours == theirs, f"{len(theirs)} tokens, {images} of the image")


def _rows(vlm: VLM) -> tuple[torch.Tensor, torch.Tensor]:
    """The last prompt row over all keys by capture, (L, H, S), and by eager attention."""
    adapter = vlm.adapter
    inputs = {name: value.to(adapter.device) for name, value in adapter.stock_inputs(_picture(), PROMPT).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(vlm.model.dtype)
    capture = RowCapture(torch.tensor([[-1]]))
    with torch.inference_mode(), adapter.session(capture):
        vlm.model(**inputs)
    owner, key = adapter.attention_owner, adapter.config_key
    before = (getattr(owner.config, key) if key else owner.config)._attn_implementation
    owner.set_attn_implementation({key: "eager"})
    try:
        with torch.inference_mode():
            out: Any = vlm.model(**inputs, output_attentions=True)
    finally:
        owner.set_attn_implementation({key: before})
    out = getattr(out, "language_model_outputs", out)
    maps = getattr(out, "cross_attentions", None) or out.attentions
    return capture.stacked()[:, 0, :, 0].cpu(), torch.stack([one[0, :, -1].float().cpu() for one in maps])


def _sums(vlm: VLM) -> Finding:
    captured, _ = _rows(vlm)
    worst = (captured.sum(-1) - 1).abs().max().item()
    return Finding("rows of attention sum to 1", worst < 1e-4, f"off by {worst:.1e} at most")


def _eager(vlm: VLM) -> Finding:
    captured, full = _rows(vlm)
    worst = (captured - full).abs().max().item()
    return Finding("captured rows equal eager attention", worst < TOLERANCE[vlm.model.dtype], f"off by {worst:.1e}")


def _edits(vlm: VLM) -> Finding:
    def scores(strength: float) -> torch.Tensor:
        prepared = vlm.adapter.prepare([Sample((_picture(),), PROMPT)])
        with torch.inference_mode(), vlm.adapter.session(edits=Boost(strength).edits()) as session:
            batch = vlm.adapter.embed(prepared, [vlm.adapter.encode(prepared[0].pixels)])
            session.columns = batch.columns
            return vlm.adapter.logits(vlm.adapter.decode(batch)[:, -1])

    plain, same, changed = scores(1), scores(1), scores(4)
    moved = (changed - plain).abs().max().item()
    holds = bool(torch.equal(plain, same)) and moved > 0
    return Finding("editing attention changes the scores, strength 1 does not", holds, f"moved by {moved:.1e}")


def _frame(vlm: VLM) -> Finding:
    name = "a mark in the picture lights up at its place"
    if vlm.adapter.mixed:
        return Finding(name, None, "an image token of this family is a mixture of places")
    mark = (112, 40)
    plain, marked = (vlm.adapter.prepare([Sample((one,), PROMPT)])[0] for one in (_picture(), _picture(mark)))
    with torch.inference_mode():
        before, after = (vlm.adapter.encode(one.pixels)[0].float() for one in (plain, marked))
    change = (after - before).norm(dim=-1).cpu()
    view = plain.layout.images[0].views[0]
    first = plain.layout.images[0].tokens.start
    best = int(change[[token - first for token in view.tokens]].argmax())
    column, row = best % view.columns, best // view.columns
    x, y = view.to_pixels.point(column + 0.5, row + 0.5)
    near = abs(x - mark[0]) <= 8 + abs(view.to_pixels.scale_x) and abs(y - mark[1]) <= 8 + abs(view.to_pixels.scale_y)
    return Finding(name, near, f"marked at {mark[0]}, {mark[1]}; strongest at {x:.0f}, {y:.0f}")
