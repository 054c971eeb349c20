"""Where a number came from: the commit and the versions of what computed it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("mmattn", "torch", "transformers", "pillow", "numpy", "pycocotools", "inflect")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def commit() -> str | None:
    """Commit that this package's source is checked out at, with "+changes" if it was edited since; else None."""
    source = Path(__file__).resolve()
    # An installed copy may lie inside somebody else's checkout; that commit would say nothing about our source.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    head = _git(source.parent, "rev-parse", "HEAD")
    if head is None:
        return None
    package = str(source.parent.parent)
    edited = _git(source.parent, "status", "--porcelain", "--untracked-files=no", "--", package)
    return f"{head}+changes" if edited else head


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            ["git", *words],  # noqa: S607 - the user's own git
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
