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
Emphasise = Annotated[list[str] | None, typer.Option(help="Words of the prompt to steer attention to; repeatable.")]
EmphasiseBox = Annotated[
    list[str] | None,
    typer.Option(help="A box to steer attention to: x0,y0,x1,y1 in original pixels; repeatable."),
]
Strength = Annotated[float | None, typer.Option(help="How strongly, from 1 (not at all) upwards; 2 by default.")]
By = Annotated[str | None, typer.Option(help="The method of emphasis; instaboost, or what --method steers by.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run Python code that the model repository brings along.")]


def require_text(what: str, text: str) -> None:
    """Refuse words that no model can read, before one is loaded."""
    if not text.strip():
        raise MmattnError(f"The {what} is empty", "Give it a word at least.")
    if not is_text(text):
        raise MmattnError(f"The {what} is not UTF-8 text", "Check the encoding of the terminal or script.")


def emphasis(
    words: list[str] | None, boxes: list[str] | None, strength: float | None, by: str | None, prompts: int | None = None
) -> Any:
    """What `generate(emphasise=...)` takes, for one prompt or a list of some; None if nothing is emphasised."""
    from mmattn.decoding import emphasise

    what: list[Any] = [*(words or ()), *map(_box, boxes or ())]
    if not what:
        if strength is not None or by is not None:
            raise MmattnError("There is nothing to emphasise", "Add --emphasise WORDS or --emphasise-box x0,y0,x1,y1.")
        return None
    each = what if prompts is None else [what] * prompts
    return each if strength is None and by is None else emphasise(each, strength or 2.0, by or "instaboost")


def _box(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise MmattnError(f"Cannot read the box {text!r}", "Write x0,y0,x1,y1 such as 40,60,120,140.") from None


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
