"""The Ask tab: an answer whose every word shows where it looked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

import mmattn
from mmattn.demo.ask_export import ask_export
from mmattn.demo.ask_view import CHOSEN, HINT, both, drawn, first_word, gallery, told_of
from mmattn.demo.asking import ask
from mmattn.demo.desk import LIGHT, MODEL, Desk, Made
from mmattn.demo.models import first_view, size_of
from mmattn.demo.state import AGGREGATIONS, ONE_HEAD, Asked, Picture, Settings, View, Where
from mmattn.demo.uploads import told


class AskTab:
    """Widgets and handlers.

    Attributes:
        asked, view: what this page remembers: the last answer with its rows, and what is shown of it.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.asked, self.view = gr.State(None, time_to_live=3600), gr.State(View())
        with gr.Row():
            self.run = gr.Button("Ask", variant="primary", elem_id="ask")
            self.stop = gr.Button("Stop", elem_id="stop")
        self.status = gr.HTML("", elem_id="status")
        self.answer = _words("Answer: click any word", "answer")
        self.question = _words("Question: its words can be clicked, too", "question")
        self.line = gr.HTML(HINT, elem_id="line")
        self.map = gr.Image(
            label="Where it looked",
            show_label=False,
            interactive=False,
            format="png",
            elem_id="map",
            height=480,
            buttons=["fullscreen"],
        )
        self.controls = _controls(desk.shop.models.get(desk.shop.models.names[0]))
        with gr.Accordion("All heads of the layer: click one to see it large", open=True):
            self.heads = gr.Gallery(
                columns=8,
                height="auto",
                allow_preview=False,
                show_label=False,
                elem_id="heads",
                elem_classes="thumbs",
                buttons=[],
            )
        self.settings = _settings()
        self._wire()

    def _wire(self) -> None:
        desk, texts, picture = self.desk, [self.answer, self.question], [self.map, self.line]
        again: dict[str, Any] = {
            "fn": gallery, "inputs": [self.asked, self.view], "outputs": self.heads, "show_progress": "hidden",
            "api_visibility": "private",
        }  # fmt: skip
        inputs = [desk.model, desk.picture, desk.prompt, *self.settings, *self.controls]
        outputs = [*texts, *picture, self.asked, self.view, self.status]
        gr.on(
            [self.run.click, desk.prompt.submit], self.start, inputs, outputs, api_name="ask", show_progress="minimal",
            **MODEL,
        ).then(**again)  # fmt: skip
        self.stop.click(desk.stop, queue=False, api_name="stop")
        for text, handler in ((self.answer, self.pick_answer), (self.question, self.pick_question)):
            text.select(handler, [self.asked, self.view], [self.view, *texts, *picture], **LIGHT).then(**again)
        layer, head, how, opacity, smooth = self.controls
        gr.on(
            [layer.release, head.release, how.input, opacity.release, smooth.input],
            self.change, [self.asked, self.view, *self.controls], [self.view, *picture], **LIGHT,
        ).then(**again)  # fmt: skip
        self.heads.select(self.pick_head, [self.asked, self.view], [self.view, *picture, head, how], **LIGHT)
        desk.model.change(
            self.other_model, desk.model, [self.asked, self.view, *texts, *picture, self.heads, layer, head, how],
            api_visibility="private", **MODEL,
        )  # fmt: skip
        desk.export_row("ask", self.export, [self.asked, self.view])

    def start(
        self, request: gr.Request, name: str, picture: Picture | None, prompt: str, method: str, longest: int,
        sample: bool, seed: float, *given: Any,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Stream the answer, then show the map of its first telling word."""
        with told():
            settings = Settings(name, method or "greedy", int(longest), int(seed or 0), bool(sample))
            stop = self.desk.shop.stops.begin(str(request.session_hash))
            for news in ask(self.desk.shop.models.get(name), picture, prompt, settings, stop):
                if isinstance(news, str):
                    yield [(news, None)], *[gr.skip()] * 5, "Answering ..."
                else:
                    view = first_word(news, View("answer", 0, *given))
                    yield *both(news, view), *drawn(news, view), news, view, told_of(news, self.desk.shop.examples)

    def pick_answer(self, asked: Asked | None, view: View, event: gr.SelectData) -> tuple[Any, ...]:
        """A word of the answer was clicked."""
        return self._pick("answer", asked, view, event)

    def pick_question(self, asked: Asked | None, view: View, event: gr.SelectData) -> tuple[Any, ...]:
        """A word of the question was clicked."""
        return self._pick("prompt", asked, view, event)

    def _pick(self, where: Where, asked: Asked | None, view: View, event: gr.SelectData) -> tuple[Any, ...]:
        if asked is None:
            return (gr.skip(),) * 5
        view = replace(view, where=where, word=int(event.index))
        return view, *both(asked, view), *drawn(asked, view)

    def change(self, asked: Asked | None, view: View, *given: Any) -> tuple[Any, ...]:
        """A slider was let go: other layers or heads of rows that are there already."""
        view = View(view.where, view.word, *given)
        return view, *drawn(asked, view)

    def pick_head(self, asked: Asked | None, view: View, event: gr.SelectData) -> tuple[Any, ...]:
        """A small map was clicked."""
        view = replace(view, head=int(event.index), how=ONE_HEAD)
        return view, *drawn(asked, view), view.head, view.how

    def other_model(self, name: str) -> tuple[Any, ...]:
        """Load the model, and forget what another one said."""
        with told():
            model = self.desk.shop.models.get(name)
        depth, heads = size_of(model)
        view = first_view(model)
        sliders = gr.update(maximum=depth - 1, value=view.layer), gr.update(maximum=heads - 1, value=view.head)
        return None, view, None, None, None, HINT, [], *sliders, view.how

    def export(self, asked: Asked | None, view: View) -> Made:
        """What the export button writes."""
        if asked is None:
            raise mmattn.MmattnError("There is nothing to export yet", "Ask something first.")
        model = self.desk.shop.models.get(asked.settings.model)
        return asked.settings.model, asked.picture, ask_export(model, asked, view)


def _words(label: str, name: str) -> gr.HighlightedText:
    return gr.HighlightedText(
        label=label, combine_adjacent=False, show_legend=False, show_inline_category=False,
        color_map={CHOSEN: "#f59e0b"}, elem_id=name, elem_classes="words", show_whitespaces=True,
    )  # fmt: skip


def _controls(model: mmattn.VLM) -> list[Any]:
    """The fields of `View` that follow the word."""
    depth, heads = size_of(model)
    view = first_view(model)
    with gr.Row():
        layer = gr.Slider(0, depth - 1, value=view.layer, step=1, label="Layer", elem_id="layer", buttons=[])
        head = gr.Slider(0, heads - 1, value=view.head, step=1, label="Head", elem_id="head", buttons=[])
    how = gr.Radio(AGGREGATIONS, value=view.how, label="Show", elem_id="how")
    with gr.Row():
        opacity = gr.Slider(0, 1, value=view.opacity, step=0.05, label="Opacity", elem_id="opacity", buttons=[])
        smooth = gr.Checkbox(view.smooth, label="Smooth between cells")
    return [layer, head, how, opacity, smooth]


def _settings() -> list[Any]:
    """The fields of `Settings` that follow the model."""
    with gr.Accordion("How the answer is made", open=False):
        method = gr.Dropdown(
            [one.name for one in mmattn.methods()], value="greedy", allow_custom_value=True, label="Method",
            elem_id="method", info='A name, with hyper-parameters if you like: "vcd(alpha=0.5)", "var+vcd".',
        )  # fmt: skip
        longest = gr.Slider(1, 512, value=64, step=1, label="Longest answer, in tokens", buttons=[])
        sample = gr.Checkbox(False, label="Draw tokens at random instead of taking the best")
        seed = gr.Number(0, precision=0, label="Seed")
    return [method, longest, sample, seed]
