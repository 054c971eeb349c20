"""The program `mmattn`: one readable line for every problem, JSON for programs."""

from __future__ import annotations

import io
import logging
import os
import sys

import typer

from mmattn.cli import basics, bench, demo, detector, published, sinks
from mmattn.cli import eval as evaluation
from mmattn.cli import ground as grounding
from mmattn.cli import prompt as prompting
from mmattn.cli import refer as referring
from mmattn.errors import MmattnError, first_line, is_out_of_memory

app = typer.Typer(
    help="See where vision-language models look, change where they look, and make them hallucinate less.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(evaluation.app, name="eval", help="POPE, CHAIR and grounding runs that resume and can be traced.")
basics.register(app)
app.command()(bench.bench)
app.command()(demo.demo)
app.command()(sinks.sinks)
prompting.register(app)
grounding.register(app, evaluation.app)
app.add_typer(detector.app, name="detector")
app.command()(referring.refer)
published.register(evaluation.app)


def main() -> None:
    """Run the program. Every problem is one line: status 2 for the user's input, 1 for the unforeseen.

    `--traceback` anywhere on the command line shows where a problem came from.
    """
    wants_traceback = "--traceback" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--traceback"]
    told = logging.getLogger("mmattn")
    told.addHandler(logging.StreamHandler())  # on stderr
    told.setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):  # answers may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            _flush()
    except BrokenPipeError:  # the reader has seen enough
        sys.exit(1)
    except Exception as error:
        if wants_traceback:
            raise
        line, status = _told(error)
        sys.stderr.write(f"mmattn: {line}\n")
        sys.exit(status)


def _flush() -> None:
    """Write out what is buffered while a failure can still be told; at its end Python would print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has nowhere to go
        raise


def _told(error: Exception) -> tuple[str, int]:
    """One line about `error`, and the exit status."""
    if isinstance(error, MmattnError):
        return " ".join(str(error).splitlines()), 2
    if is_out_of_memory(error):
        return "Out of memory. Use a smaller --batch-size, --max-new-tokens or model, or --dtype bfloat16.", 2
    if isinstance(error, OSError):
        return f"{error.filename or 'Cannot read or write'}: {error.strerror or first_line(error)}", 1
    name, said = type(error).__name__, first_line(error)
    what = name if said == name else f"{name}: {said}"
    return f"unexpected {what}. Run again with --traceback for the details, and report it.", 1
