"""What a view leaves behind: a picture, its numbers, and the Python lines that make both again."""

from __future__ import annotations

import atexit
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from PIL import Image

from mmattn.demo.examples import Example
from mmattn.demo.state import Picture

UPLOADED, MASK = "picture.png", "mask.png"
HOUR = 3600


@dataclass(frozen=True)
class Export:
    """One view, ready to be written.

    Attributes:
        name: of the view.
        image: what it shows.
        data: JSON values.
        body: Python lines that follow `model` and `picture`; they write the same image to "{name}.png".
        imports: lines beyond `import mmattn`.
        extra: a picture that the lines read as "mask.png".
    """

    name: str
    image: Image.Image
    data: Mapping[str, Any]
    body: str
    imports: str = ""
    extra: Image.Image | None = None


class Exports:
    """Writes exports into a folder that goes when the program ends; each is kept for an hour."""

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="mmattn-demo-"))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    def write(self, export: Export, model: str, picture: Picture, example: Example | None) -> tuple[list[str], str]:
        """Paths of the files, and the lines. A picture that is no example comes along.

        Args:
            model: what `mmattn.load` takes.
        """
        for old in self._folder.iterdir():
            if time.time() - old.stat().st_mtime > HOUR:
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(mkdtemp(dir=self._folder))
        lines = script(export, model, example)
        files = {f"{export.name}.py": lines, f"{export.name}.json": json.dumps(export.data, indent=1)}
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        export.image.save(folder / f"{export.name}.png")
        names = [f"{export.name}.png", *files]
        if export.extra is not None:
            export.extra.save(folder / MASK)
            names.append(MASK)
        if example is None or not example.lines:
            picture.image.save(folder / UPLOADED)
            names.append(UPLOADED)
        return [str(folder / name) for name in names], lines


def script(export: Export, model: str, example: Example | None) -> str:
    """A Python program that makes the view again."""
    given = example.lines if example is not None else ""
    picture = given or f'picture = mmattn.open_image("{UPLOADED}")'
    imports = f"import mmattn\n{export.imports}".rstrip()
    return f"{imports}\n\nmodel = mmattn.load({model!r})\n{picture}\n\n{export.body.rstrip()}\n"
