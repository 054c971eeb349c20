"""`mmattn refer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError


def refer(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question.")],
    box: Annotated[str | None, typer.Option(help="left,top,right,bottom in pixels.")] = None,
    point: Annotated[str | None, typer.Option(help="x,y in pixels.")] = None,
    scribble: Annotated[str | None, typer.Option(help='Points of a line: "x,y x,y ...".')] = None,
    mask: Annotated[Path | None, typer.Option(help="Picture of the same size, not black where it is meant.")] = None,
    version: Annotated[str, typer.Option(help="controlmllm, controlmllm++ or controlmllm++-qwen.")] = "controlmllm",
    max_new_tokens: options.MaxNewTokens = 32,
    model: options.Model = "scenes-llava",
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Ask about one place of a picture: the model is made to look there, by a few steps of gradient descent."""
    from mmattn.images import open_image
    from mmattn.referring import preset

    options.require_text("prompt", prompt)
    places: dict[str, Any] = {
        "box": _numbers("box", box),
        "point": _numbers("point", point),
        "scribble": [_numbers("scribble", one) for one in scribble.split()] if scribble is not None else None,
        "mask": mask,
    }
    how, picture = preset(version), open_image(image)
    vlm = options.load_model(model, device, dtype, trust_remote_code)
    found = vlm.refer(picture, prompt, **places, version=how, max_new_tokens=max_new_tokens)
    if as_json:
        told = {"prompt": prompt, "text": found.text, "activations": list(found.activations)}
        options.emit({"model": vlm.describe(), "version": version, **told})
        return
    options.say(found.text)
    first, last = found.activations[0], found.activations[-1]
    options.say(f"Attention in the region: {100 * first:.1f} % before, {100 * last:.1f} % after.")


def _numbers(what: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise MmattnError(f"--{what} {text!r} is no list of numbers", "Write them with commas, as in 10,20.") from error
