"""The Inspect tab: sinks, heads, and how much of the answer comes from the picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

import mmattn
from mmattn.decoding import VAR
from mmattn.demo.desk import LIGHT, MODEL, Desk, Made
from mmattn.demo.export import Export
from mmattn.demo.inspecting import (
    Inspected,
    along_the_answer,
    by_head,
    by_layer,
    inspect,
    marked,
    sink_map,
    stacked,
    told_of,
)  # fmt: skip
from mmattn.demo.models import size_of
from mmattn.demo.state import Picture
from mmattn.demo.uploads import told


class InspectTab:
    """Widgets and handlers."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        found = gr.State(None, time_to_live=3600)
        run = gr.Button("Answer and inspect", variant="primary", elem_id="inspect")
        answer = gr.HighlightedText(
            label="Answer, with what the model's detector takes for hallucinated", combine_adjacent=False,
            show_legend=False, show_inline_category=False, color_map={"perhaps hallucinated": "#dc2626"},
            elem_id="inspected", elem_classes="words",
        )  # fmt: skip
        along = _plot("Along the answer: what comes from the picture", "along")
        heads = _plot("Layers and heads, mean over the answer", "by-head")
        with gr.Row():
            tau = gr.Slider(1, 60, value=VAR.tau, step=0.5, label="tau: a sink's hidden state exceeds it", buttons=[])
            p = gr.Slider(0, 0.95, value=VAR.p, step=0.05, label="p: what VAR leaves a sink", buttons=[])
        line = gr.HTML("", elem_id="sinks")
        layers = _plot("Sinks of each layer, at the prompt's last token", "by-layer")
        depth, _ = size_of(desk.shop.models.get(desk.shop.models.names[0]))
        layer = gr.Slider(0, depth - 1, value=depth // 2, step=1, label="Layer", elem_id="sink-layer", buttons=[])
        gr.HTML("<b>Size of the image tokens' hidden states in this layer; sinks in red</b>")
        picture = gr.Image(
            label="Sinks", show_label=False, interactive=False, format="png", height=420, elem_id="sink-map",
            buttons=["fullscreen"],
        )  # fmt: skip
        outputs = [answer, along, heads, layers, line, picture, layer, found]
        inputs = [desk.model, desk.picture, desk.prompt, tau, p, layer]
        run.click(self.start, inputs, outputs, api_name="inspect", show_progress="minimal", **MODEL)
        layer.release(self.redraw, [found, layer], picture, **LIGHT)
        desk.export_row("inspect", self.export, [found, layer])

    def start(
        self, name: str, picture: Picture | None, prompt: str, tau: float, p: float, layer: int
    ) -> tuple[Any, ...]:
        """Answer, and draw everything."""
        with told():
            model = self.desk.shop.models.get(name)
            found = inspect(model, name, picture, prompt, VAR(tau=tau, p=p))
        depth = len(found.sinks.sinks)
        layer = min(int(layer), depth - 1)
        plots = along_the_answer(found), by_head(found), by_layer(found)
        slider = gr.update(maximum=depth - 1, value=layer)
        return marked(found), *plots, told_of(found), sink_map(found, layer), slider, found

    def redraw(self, found: Inspected | None, layer: int) -> Any:
        """Another layer of what was read."""
        return gr.skip() if found is None else sink_map(found, int(layer))

    def export(self, found: Inspected | None, layer: int) -> Made:
        """What the export button writes."""
        if found is None:
            raise mmattn.MmattnError("There is nothing to export yet", "Inspect an answer first.")
        signals, sinks = found.signals, found.sinks
        divergence = signals.divergence
        data = {
            "model": self.desk.shop.models.get(found.model).describe(),
            "picture": found.picture.name,
            "prompt": found.prompt,
            "answer": signals.text,
            "words": [word.to_json() for word in found.words],
            "image_share": signals.image.mean(-1).tolist(),
            "divergence": None if divergence is None else divergence.mean(-1).tolist(),
            "var": found.var.settings(),
            "sinks": [row.nonzero()[:, 0].tolist() for row in sinks.sinks],
            "largest_state": sinks.sizes.amax(-1).tolist(),
            "moved_by_var": sinks.moved.tolist(),
        }
        image = stacked([along_the_answer(found), by_head(found), by_layer(found), sink_map(found, int(layer))])
        body = (
            f"prompt = {found.prompt!r}\nsignals = model.signals(picture, prompt)\nprint(signals.text)\n"
            "for word in signals.words(model.detector):\n    print(word.text, word.image, word.divergence, word.risk)\n"
            "print(signals.image.mean(-1), signals.divergence.mean(-1))  # (layers, heads)\n"
            f"moved = model.attend(picture, prompt, method={found.var.label!r}).weights\n"
            "print((moved - model.attend(picture, prompt).weights).sum(-1)[..., 0])  # VAR, layer upon layer\n"
        )
        return found.model, found.picture, Export("inspect", image, data, body)


def _plot(label: str, name: str) -> gr.Image:
    gr.HTML(f"<b>{label}</b>")
    return gr.Image(
        label=label, show_label=False, interactive=False, format="png", image_mode="RGBA", elem_id=name,
        elem_classes="plot", buttons=["fullscreen"],
    )  # fmt: skip
