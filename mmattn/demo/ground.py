"""The Ground tab: a query, its map, boxes and click point, and the truth on examples."""

from __future__ import annotations

from typing import Any

import gradio as gr

import mmattn
from mmattn.demo import grounding
from mmattn.demo.desk import LIGHT, MODEL, Desk, Made
from mmattn.demo.export import Export
from mmattn.demo.grounding import Found, clicked, drawn, method_of, methods, plain, told_of
from mmattn.demo.state import Picture
from mmattn.demo.uploads import told

HINT = "Name something that is in the picture. Then click where you see it."


class GroundTab:
    """Widgets and handlers."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.found = gr.State(None, time_to_live=3600)
        with gr.Row():
            query = gr.Textbox("the umbrella", label="What to find", elem_id="query", scale=3)
            run = gr.Button("Ground", variant="primary", elem_id="ground", scale=1)
        with gr.Row():
            known = desk.shop.models.get(desk.shop.models.names[0]).grounding_heads
            method = gr.Dropdown(
                methods(), value="heads" if known else "tag", label="Method", elem_id="locator", scale=2
            )
            arguments = gr.Textbox(
                "", label="Its hyper-parameters", placeholder="threshold=0.5, tokens='last'", scale=2
            )
        line = gr.HTML(HINT, elem_id="found")
        shown = gr.Image(
            label="Where it is",
            show_label=False,
            interactive=False,
            format="png",
            elem_id="place",
            height=480,
            buttons=["fullscreen"],
        )
        opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity", buttons=[])
        screen = gr.Button("Show the screenshot example", size="sm")
        inputs = [desk.model, desk.picture, query, method, arguments, opacity]
        gr.on(
            [run.click, query.submit], self.start, inputs, [shown, line, self.found], api_name="ground",
            show_progress="minimal", **MODEL,
        )  # fmt: skip
        shown.select(self.click, [self.found, opacity], [shown, line, self.found], **LIGHT)
        opacity.release(self.redraw, [self.found, opacity], shown, **LIGHT)
        screen.click(self.screen, None, [desk.picture, query], **LIGHT)
        desk.export_row("ground", self.export, [self.found])

    def start(
        self, name: str, picture: Picture | None, query: str, method: str, arguments: str, opacity: float
    ) -> tuple[Any, ...]:
        """Ground the query."""
        with told():
            model = self.desk.shop.models.get(name)
            found = grounding.ground(model, name, picture, query, method_of(method, arguments), self.desk.shop.examples)
        return drawn(found, opacity), told_of(found), found

    def click(self, found: Found | None, opacity: float, event: gr.SelectData) -> tuple[Any, ...]:
        """The visitor says where it is."""
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        found = clicked(found, *event.index[:2])
        return drawn(found, opacity), told_of(found), found

    def redraw(self, found: Found | None, opacity: float) -> Any:
        """The opacity was changed."""
        return gr.skip() if found is None else drawn(found, opacity)

    def screen(self) -> tuple[Any, str]:
        """The window with buttons, and something to look for in it."""
        return self.desk.shop.examples.screen.picture.image, "the scissors"

    def export(self, found: Found | None) -> Made:
        """What the export button writes."""
        if found is None:
            raise mmattn.MmattnError("There is nothing to export yet", "Ground something first.")
        data = {
            "model": self.desk.shop.models.get(found.model).describe(),
            "picture": found.picture.name,
            "size": list(found.picture.image.size),
            **found.grounding.to_json(),
            "truth": [list(box) for box in found.truth],
            "click": found.click and list(found.click),
        }
        body = (
            f"found = model.ground(picture, {found.query!r}, method={found.method!r})\n"
            "print(found.point, found.boxes, found.scores)\n"
            "points = [found.point] if found.point else []\n"
            "image = mmattn.open_image(picture)\n"
            'save_overlay("ground.png", image, found.heatmap, found.query, found.boxes, points)\n'
        )
        imports = "from mmattn.grounding import save_overlay\n"
        return found.model, found.picture, Export("ground", plain(found), data, body, imports)
