from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.fakes import World, make_world
from tests.eval.runs import run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read it only."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(world, out)
    return out
