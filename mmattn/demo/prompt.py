"""The Prompt tab: lead the model's eye, by the question or by hand, and see the answer change."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

import mmattn
from mmattn.decoding.emphasis import STEERERS
from mmattn.demo.comparing import DIFFERS, pieces
from mmattn.demo.desk import LIGHT, MODEL, Desk, Made
from mmattn.demo.drawing import shown
from mmattn.demo.examples import Examples
from mmattn.demo.export import Export
from mmattn.demo.state import Picture
from mmattn.demo.steering import DIM, EMPHASISE, REFER, Led, Mask, dim_by_question, lead_by_hand
from mmattn.demo.uploads import drawing_only, told
from mmattn.demo.words import differing
from mmattn.prompting import box_mask

COLOURS = {DIFFERS: "#f59e0b", "not in the picture": "#dc2626"}
BRUSH = gr.Brush(default_size=28, colors=["#22d3ee"], color_mode="fixed")


def painted(value: dict[str, Any] | None) -> Mask | None:
    """What was brushed, (H, W) 0 or 1 at the size of the drawing; None where there is no drawing."""
    layers = [layer for layer in (value or {}).get("layers") or [] if layer is not None]
    if not layers:
        return None
    alphas = [np.asarray(layer.convert("RGBA").getchannel("A")) > 0 for layer in layers]
    mask: Mask = np.any(alphas, axis=0).astype(np.float32)
    return mask


def boxed(text: str, picture: Picture | None) -> Mask | None:
    """The box that was typed, as a mask.

    Raises:
        MmattnError: it is none, or lies outside of the picture.
    """
    try:
        left, top, right, bottom = map(float, text.replace(",", " ").split())
    except ValueError as error:
        raise mmattn.MmattnError(f"Cannot read the box {text!r}", "Write left, top, right, bottom.") from error
    return None if picture is None else box_mask(picture.image.size, [(left, top, right, bottom)])


def canvas(image: Image.Image | None) -> dict[str, Any] | None:
    """A fresh drawing over the picture."""
    return None if image is None else {"background": shown(image), "layers": [], "composite": None}


def answers(led: Led, examples: Examples) -> list[list[tuple[str, str | None]]]:
    """Both answers, with what differs and what is not in the picture marked."""
    texts = [led.before, led.after]
    marks = differing(texts)
    return [pieces(text, mark, examples.mentions(led.picture, text)) for text, mark in zip(texts, marks, strict=True)]


def answer_field(label: str) -> gr.HighlightedText:
    """A field for an answer with marks."""
    return gr.HighlightedText(
        label=label, combine_adjacent=False, show_legend=False, show_inline_category=False, color_map=COLOURS,
        elem_id=label.lower(), elem_classes="words",
    )  # fmt: skip


class PromptTab:
    """Widgets and handlers."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        led = gr.State(None, time_to_live=3600)
        with gr.Accordion("Dim what the question is not about", open=True):
            scorer = gr.Radio(
                [("the model's attention", "lvlm"), ("minus a general question's", "contrast"), ("CLIP", "clip")],
                value="lvlm", label="Who says what it is about", elem_id="scorer",
            )  # fmt: skip
            with gr.Row():
                strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength", buttons=[])
                enhance = gr.Slider(0, 10, value=5, step=0.5, label="Steepness", buttons=[])
            dim = gr.Button("Dim and ask again", variant="primary", elem_id="dim")
        with gr.Accordion("Lead its eye by hand", open=True):
            editor = gr.ImageEditor(
                value=shown(desk.first), type="pil", image_mode="RGBA", sources=(), transforms=(), layers=False,
                brush=BRUSH, label="Brush over what matters", elem_id="editor", height=420, buttons=[],
            )  # fmt: skip
            drawing_only(editor)
            box = gr.Textbox(
                "",
                label="Or a box: left, top, right, bottom in pixels of the picture",
                placeholder="252, 220, 336, 310",
            )
            how = gr.Radio([DIM, EMPHASISE, REFER], value=EMPHASISE, label="And then", elem_id="lead-how")
            with gr.Row():
                by = gr.Dropdown(list(STEERERS), value="instaboost", label="Emphasise by", min_width=120)
                force = gr.Slider(0, 20, value=8, step=0.5, label="Strength (1: plain)", min_width=160, buttons=[])
            lead = gr.Button("Ask with this region", variant="primary", elem_id="lead")
        line = gr.HTML("", elem_id="led")
        slider = gr.ImageSlider(show_label=False, format="png", max_height=480, elem_id="slider", buttons=[])
        with gr.Row():
            words = [answer_field(label) for label in ("Before", "After")]
        outputs, shared = [slider, *words, line, led], [desk.model, desk.picture, desk.prompt]
        options: dict[str, Any] = {"show_progress": "minimal", **MODEL}
        dim.click(self.by_question, [*shared, scorer, strength, enhance], outputs, api_name="dim", **options)
        lead.click(self.by_hand, [*shared, editor, box, how, force, by], outputs, api_name="lead", **options)
        desk.picture.change(lambda one: canvas(one and one.image), desk.picture, editor, **LIGHT)
        desk.export_row("prompt", self.export, [led])

    def by_question(
        self, name: str, picture: Picture | None, prompt: str, scorer: str, strength: float, enhance: float
    ) -> tuple[Any, ...]:
        """Dim by a scorer, and ask again."""
        with told():
            model = self.desk.shop.models.get(name)
            return self.shown(dim_by_question(model, name, picture, prompt, scorer, strength, enhance))

    def by_hand(
        self, name: str, picture: Picture | None, prompt: str, drawing: dict[str, Any] | None, box: str, how: str,
        force: float, by: str,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Use what was brushed, and ask again."""
        with told():
            model = self.desk.shop.models.get(name)
            strength = min(force, 1.0) if how == DIM else force
            mask = boxed(box, picture) if box.strip() else painted(drawing)
            return self.shown(lead_by_hand(model, name, picture, prompt, mask, how, strength, by))

    def shown(self, led: Led) -> tuple[Any, ...]:
        """What both buttons fill."""
        return led.pictures, *answers(led, self.desk.shop.examples), led.line, led

    def export(self, led: Led | None) -> Made:
        """What the export button writes."""
        if led is None:
            raise mmattn.MmattnError("There is nothing to export yet", "Dim, or brush and ask.")
        data = {
            "model": self.desk.shop.models.get(led.model).describe(), "picture": led.picture.name,
            "prompt": led.prompt, "how": led.how, "before": led.before, "after": led.after, **led.data,
        }  # fmt: skip
        mask = None if led.mask is None else Image.fromarray((led.mask * 255).astype(np.uint8))
        return led.model, led.picture, Export("prompt", led.image, data, led.body, extra=mask)
