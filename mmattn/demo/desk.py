"""What all tabs share: the models, the examples, the page's picture and question, and how handlers are wired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from mmattn.demo.examples import Examples
from mmattn.demo.export import Export, Exports
from mmattn.demo.models import Models
from mmattn.demo.state import Picture
from mmattn.demo.streaming import Stops
from mmattn.demo.uploads import told

# One generation at a time, whoever asks; what needs none goes on meanwhile.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
LIGHT: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}

# Name of the model, the picture, and the view.
Made = tuple[str, Picture, Export]


@dataclass(frozen=True)
class Shop:
    """What all visitors share; none of it is about a visitor."""

    models: Models
    examples: Examples
    exports: Exports = field(default_factory=Exports)
    stops: Stops = field(default_factory=Stops)


@dataclass(frozen=True)
class Desk:
    """The part of the page that all tabs use.

    Attributes:
        first: what `picture` shows at the start.
    """

    shop: Shop
    model: gr.Dropdown
    picture: gr.Image
    prompt: gr.Textbox
    first: Image.Image

    def stop(self, request: gr.Request) -> None:
        """End what this page is waiting for."""
        self.shop.stops.stop(str(request.session_hash))

    def export_row(self, name: str, make: Callable[..., Made], inputs: list[Any]) -> None:
        """A button that writes the view called `name`; `make` gets the values of `inputs`."""
        with gr.Accordion("Export: picture, numbers, Python", open=False, elem_classes="export"):
            button = gr.Button("Export this view", size="sm")
            files = gr.File(label="Files", file_count="multiple", interactive=False)
            code = gr.Code(label="The lines that make it again", language="python", interactive=False)

        def write(*values: Any) -> tuple[list[str], str]:
            with told():
                model, picture, export = make(*values)
                example = self.shop.examples.find(picture)
                return self.shop.exports.write(export, self.shop.models.source(model), picture, example)

        button.click(write, inputs, [files, code], show_progress="minimal", api_name=f"export_{name}", **MODEL)
