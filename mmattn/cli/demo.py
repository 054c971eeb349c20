"""`mmattn demo`: the page in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError


def demo(
    model: options.Model = "scenes-llava",
    host: Annotated[str, typer.Option(help="Address to listen on. Anything but 127.0.0.1 lets others in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(help="Port; by default 7860, or the next free one.")] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """See where a model looks and change where it looks, in a browser."""
    try:
        from mmattn.demo.app import launch
        from mmattn.demo.models import Models
    except ImportError as error:
        raise MmattnError(f"The demo needs {error.name}", 'Install it with: pip install "mmattn[demo]"') from error
    models = Models(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    page = launch(models, host=host, port=port, open_browser=browser)
    options.say(f"Open {page.local_url} in a browser; Ctrl+C ends it.")
    page.block_thread()
