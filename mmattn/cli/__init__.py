"""The program `mmattn`: one readable line for every problem, JSON for programs."""

from __future__ import annotations

import io
import sys

import typer

from mmattn.cli import basics
from mmattn.cli import eval as evaluation
from mmattn.errors import MmattnError, out_of_memory

USAGE, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    help="See where vision-language models look, change where they look, and make them hallucinate less.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(evaluation.app, name="eval", help="POPE and CHAIR runs that resume and can be traced.")
basics.register(app)


def main() -> None:
    """Run the program; a problem with the user's input ends with one line and status 2, any other with status 1.

    `--traceback` anywhere on the command line shows where a problem came from.
    """
    wants_traceback = "--traceback" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--traceback"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without the characters still gets the rest
    try:
        status = _status()
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if wants_traceback:
            raise
        line, status = _told(error)
        sys.stderr.write(f"mmattn: {line}\n")
        if isinstance(error, OSError):  # what could not be written must not be tried again at exit
            sys.stdout = io.StringIO()
    sys.exit(status)


def _status() -> int:
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _told(error: BaseException) -> tuple[str, int]:
    """One line about an exception, and the status to end with."""
    if isinstance(error, MmattnError):
        return str(error), USAGE
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if out_of_memory(error):
        return "Out of memory. Use a smaller --batch-size, --dtype bfloat16, or a smaller model.", FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. --traceback shows where.", FAILED
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"unexpected {type(error).__name__}: {first}. Please report it with what --traceback shows.", FAILED
