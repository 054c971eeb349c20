"""The export of the Ask view."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import mmattn
from mmattn.demo.drawing import heat
from mmattn.demo.export import Export
from mmattn.demo.state import LAYER_MAX, Asked, View
from mmattn.grounding import overlay


def ask_export(model: mmattn.VLM, asked: Asked, view: View) -> Export:
    """The map of the chosen word over the original picture, with the answer and every word's share.

    Raises:
        MmattnError: nothing was read for this word.
    """
    read, rows = asked.rows(view.where), asked.words(view.where)[view.word].rows
    if read is None or not rows:
        raise mmattn.MmattnError("There is no map of this word", "Ask, and click a word.")
    heatmap = heat(read, rows, view)
    data = {
        "model": model.describe(),
        "settings": asdict(asked.settings),
        "picture": asked.picture.name,
        "prompt": asked.prompt,
        "answer": asked.text,
        "token_ids": list(asked.token_ids),
        "finish_reason": asked.finish,
        "seconds": round(asked.seconds, 3),
        "view": asdict(view),
        "word": asked.words(view.where)[view.word].text.strip(),
        "rows": list(rows),
        "peak": list(read.peak(rows=list(rows), **view.chosen())),
        "words": {where: shares(asked, where) for where in ("prompt", "answer")},
    }
    image = overlay(asked.picture.image, heatmap, view.opacity)
    imports = "from mmattn.grounding import overlay\n"
    if view.how == LAYER_MAX:
        imports = f"import numpy as np\n{imports}"
    return Export("ask", image, data, _body(asked, view, rows), imports)


def shares(asked: Asked, where: Any) -> list[dict[str, Any]]:
    """Each word with the part of its attention that is on the picture, the mean over layers, heads and tokens."""
    read = asked.rows(where)
    if read is None:
        return [{"text": word.text.strip(), "image_share": None} for word in asked.words(where)]
    per_row = read.weights.sum(-1).mean(dim=(0, 1))
    return [
        {"text": word.text.strip(), "image_share": float(per_row[list(word.rows)].mean()) if word.rows else None}
        for word in asked.words(where)
    ]


def _body(asked: Asked, view: View, rows: tuple[int, ...]) -> str:
    given = {**asked.settings.arguments(), "max_new_tokens": max(len(asked.token_ids), 1)}
    if asked.finish == "stop":
        given["max_new_tokens"] = asked.settings.max_new_tokens
    plain = {"method": "greedy", "seed": 0, "do_sample": False}
    words = "".join(f", {name}={value!r}" for name, value in given.items() if plain.get(name) != value)
    lines = [
        f"prompt = {asked.prompt!r}",
        f"answer = model.generate(picture, prompt{words}, capture=mmattn.Capture())[0]",
        "print(answer.text)",
        "read = answer.attention",
    ]
    if view.where == "prompt":
        method = "" if asked.settings.method == "greedy" else f", method={asked.settings.method!r}"
        lines[-1] = f'read = model.attend(picture, prompt, rows="prompt"{method})'
    chosen = {**view.chosen(), "rows": list(rows), **({"smooth": True} if view.smooth else {})}
    arguments = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
    if view.how == LAYER_MAX:
        lines.append("heads = range(read.weights.shape[1])")
        lines.append(f"heat = np.max([read.heatmap(heads=head, {arguments}) for head in heads], axis=0)")
    else:
        lines.append(f"heat = read.heatmap({arguments})")
    lines.append(f'overlay(mmattn.open_image(picture), heat, {view.opacity}).save("ask.png")')
    return "\n".join(lines)
