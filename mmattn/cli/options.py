"""Options that every command shares."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.errors import MmattnError
from mmattn.text import is_text

if TYPE_CHECKING:
    from mmattn.vlm import VLM

Model = Annotated[str, typer.Option(help="Bundled name, local folder, or hub id.")]
Method = Annotated[str, typer.Option(help='Decoding method, e.g. "vcd" or "vcd(alpha=0.5)"; see `mmattn methods`.')]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: the GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread one model over several GPUs: auto, balanced, ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Seed = Annotated[int, typer.Option(help="Fixes every random draw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
LONGEST = 1_000_000  # far beyond any model, and still a size that can be reckoned with
MaxNewTokens = Annotated[int, typer.Option(min=1, max=LONGEST, help="Length limit of an answer.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model repository brings along.")]


def require_text(what: str, text: str) -> None:
    """Refuse words that no model can read, before one is loaded."""
    if not text.strip():
        raise MmattnError(f"The {what} is empty", "Give it a word at least.")
    if not is_text(text):
        raise MmattnError(f"The {what} is not UTF-8 text", "Check the encoding of the terminal or script.")


def load_model(
    name: str, device: str | None, dtype: str | None, trust_remote_code: bool = False, **options: Any
) -> VLM:
    """Load a model as the commands do: quietly, and late, so that `--help` stays fast."""
    from transformers.utils import logging

    from mmattn.api import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **options)


def emit(value: Any, indent: int = 2) -> None:
    """One JSON document on the standard output."""
    # Outside of UTF-8 only JSON's own escapes are read back as what they were.
    escape = not (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=escape, indent=indent, allow_nan=False) + "\n")


def say(text: str) -> None:
    """One line for people on the standard output."""
    sys.stdout.write(text + "\n")
