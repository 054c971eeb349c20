"""The Compare tab: two to four methods side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

import mmattn
from mmattn.demo.comparing import DIFFERS, INVENTED, Compared, Result, compare, cost, marked, told_of
from mmattn.demo.controls import assembled, parameters
from mmattn.demo.desk import MODEL, Desk, Made
from mmattn.demo.drawing import answers_card
from mmattn.demo.export import Export
from mmattn.demo.state import Picture, Settings
from mmattn.demo.uploads import told

FIRST: list[list[str]] = [["greedy"], ["vcd"], ["icd"], ["boost", "vcd"]]
COLOURS = {DIFFERS: "#f59e0b", INVENTED: "#dc2626"}

LEGEND = (
    f'Words that the first answer has not are <mark style="background:{COLOURS[DIFFERS]}55">marked</mark>; on the '
    f'examples, so are objects that are <mark style="background:{COLOURS[INVENTED]}55">not in the picture</mark>.'
)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}


class Slot:
    """One method: its parts, their hyper-parameters, the expression that results, and the answer."""

    def __init__(self, number: int) -> None:
        names = [one.name for one in mmattn.methods()]
        first = FIRST[number]
        self.parts = gr.Dropdown(
            names, value=first, multiselect=True, label=f"Method {number + 1}", elem_id=f"method-{number}"
        )
        with gr.Accordion("Hyper-parameters", open=False, elem_id=f"parameters-{number}"):

            @gr.render(self.parts)  # type: ignore[untyped-decorator]
            def controls(chosen: list[str]) -> None:
                with gr.Row():
                    fields = [one.control() for one in parameters(chosen)]
                for field in fields:
                    field.change(assembled(chosen), fields, self.expression, **QUIET)
                if not fields:
                    gr.HTML("It has none.")

            self.expression = gr.Textbox("+".join(first), label="As it is run", elem_id=f"expression-{number}")
        self.answer = gr.HighlightedText(
            label="Answer", combine_adjacent=False, show_legend=False, show_inline_category=False, color_map=COLOURS,
            elem_id=f"compared-{number}", elem_classes="words",
        )  # fmt: skip
        self.line = gr.HTML("", elem_id=f"cost-{number}")
        self.parts.input(lambda chosen: "+".join(chosen), self.parts, self.expression, **QUIET)


class CompareTab:
    """Widgets and handlers."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.compared = gr.State(None, time_to_live=3600)
        with gr.Row():
            self.run = gr.Button("Compare", variant="primary", elem_id="compare")
            stop = gr.Button("Stop")
        self.longest = gr.Slider(1, 512, value=64, step=1, label="Longest answer, in tokens", buttons=[])
        gr.HTML(LEGEND)
        with gr.Row():
            slots = [self._slot(number) for number in (0, 1)]
        with gr.Accordion("Two more methods", open=False), gr.Row():
            slots += [self._slot(number) for number in (2, 3)]
            self.more = gr.Checkbox(False, label="Compare these, too")
        self.slots = slots
        outputs = [*(one.answer for one in slots), *(one.line for one in slots), self.compared]
        inputs = [desk.model, desk.picture, desk.prompt, self.longest, self.more, *(one.expression for one in slots)]
        self.run.click(self.start, inputs, outputs, api_name="compare", show_progress="minimal", **MODEL)
        stop.click(desk.stop, queue=False, api_visibility="private")
        desk.export_row("compare", self.export, [self.compared])

    def _slot(self, number: int) -> Slot:
        with gr.Column(min_width=280):
            return Slot(number)

    def start(
        self, request: gr.Request, name: str, picture: Picture | None, prompt: str, longest: int, more: bool,
        *methods: str,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Answer by each method in turn."""
        chosen = [one for one in methods[: 4 if more else 2] if one.strip()]
        with told():
            model = self.desk.shop.models.get(name)
            stop = self.desk.shop.stops.begin(str(request.session_hash))
            settings = Settings(name, max_new_tokens=int(longest))
            for compared in compare(model, picture, prompt, chosen, settings, stop):
                yield *self.shown(compared), compared

    def shown(self, compared: Compared) -> list[Any]:
        """Four answers and four lines; empty ones for what is not compared."""
        answers = marked(compared.results, self.desk.shop.examples, compared.picture)
        lines = [told_of(one, self.invented(compared.picture, one)) for one in compared.results]
        missing = 4 - len(answers)
        return [*answers, *[None] * missing, *lines, *[""] * missing]

    def invented(self, picture: Picture, result: Result) -> int | None:
        """How many objects an answer invents; None where nobody knows."""
        examples = self.desk.shop.examples
        if examples.find(picture) is None:
            return None
        return sum(not one.there for one in examples.mentions(picture, result.text))

    def export(self, compared: Compared | None) -> Made:
        """What the export button writes."""
        if compared is None:
            raise mmattn.MmattnError("There is nothing to export yet", "Compare something first.")
        model = self.desk.shop.models.get(compared.settings.model)
        results = [one for one in compared.results if not one.error]
        answers = marked(results, self.desk.shop.examples, compared.picture)
        data = {
            "model": model.describe(),
            "picture": compared.picture.name,
            "prompt": compared.prompt,
            "max_new_tokens": compared.settings.max_new_tokens,
            "results": [
                {**asdict(one), **cost(one.method), "invented": self.invented(compared.picture, one), "marks": pieces}
                for one, pieces in zip(results, answers, strict=True)
            ],
        }
        image = answers_card(compared.picture.image, compared.prompt, [(one.method, one.text) for one in results])
        body = (
            f"prompt = {compared.prompt!r}\nfor method in {[one.method for one in results]!r}:\n"
            f"    answer = model.generate(picture, prompt, method=method, "
            f"max_new_tokens={compared.settings.max_new_tokens})[0]\n"
            '    print(f"{method}: {answer.text}")\n'
        )
        return compared.settings.model, compared.picture, Export("compare", image, data, body)
