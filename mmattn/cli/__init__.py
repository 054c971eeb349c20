"""The program `mmattn`: one readable line for every problem, JSON for programs."""

from __future__ import annotations

import sys

import typer

from mmattn.cli import basics
from mmattn.cli import eval as evaluation
from mmattn.errors import MmattnError

app = typer.Typer(
    help="See where vision-language models look, change where they look, and make them hallucinate less.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(evaluation.app, name="eval", help="POPE and CHAIR runs that resume and can be traced.")
basics.register(app)


def main() -> None:
    """Run the program; problems with the user's input end with one line and status 2.

    `--traceback` anywhere on the command line shows where a problem came from.
    """
    wants_traceback = "--traceback" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--traceback"]
    try:
        app()
    except MmattnError as error:
        if wants_traceback:
            raise
        sys.stderr.write(f"mmattn: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        if wants_traceback:
            raise
        sys.stderr.write("mmattn: interrupted\n")
        sys.exit(130)
