"""`mmattn sinks`: the sink dimensions of a model, for VAR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmattn.cli import options

DRAWN = 16  # pictures of the scenes, where the user gives none


def sinks(
    model: Annotated[str, typer.Argument(help="Bundled name, local folder, or hub id.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help=f"Some pictures; by default {DRAWN} of the bundled scenes.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Asked about each picture.")] = "Describe the image.",
    tau: Annotated[float, typer.Option(help="How large a sink's normalised hidden state is.")] = 20.0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the dimensions that make sinks of tokens, and how many of a picture's tokens are sinks."""
    import dataclasses

    from mmattn.decoding.sinks import find_sinks
    from mmattn.images import open_image

    options.require_text("prompt", prompt)
    pictures = [open_image(path) for path in images or _drawn()]
    vlm = options.load_model(model, device, dtype, trust_remote_code)
    found = find_sinks(vlm, pictures, prompt, tau)
    if as_json:
        options.emit({"model": vlm.describe(), **dataclasses.asdict(found), "method": found.method})
        return
    for layer, dimensions in enumerate(found.by_layer):
        named = " ".join(map(str, dimensions)) or "none"
        options.say(
            f"layer {layer}: dimensions {named}; sinks per picture: {found.visual[layer]:.1f} of its tokens, "
            f"{found.text[layer]:.1f} others"
        )
    sizes = ", ".join(f"{dimension} ({size:g})" for dimension, size in found.largest)
    options.say(f"Largest dimensions of the first token: {sizes}")
    if found.method:
        options.say(f"Use --method '{found.method}'")
    else:
        options.say(f"No dimension exceeds tau {tau:g} in most layers: VAR finds no sinks here. A smaller --tau may.")


def _drawn() -> list[Path]:
    from mmattn import scenes

    return sorted(scenes.dataset("val", count=DRAWN).images.iterdir())
