"""A shop with the bundled model, made once."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the demo needs gradio: the extra `demo`", allow_module_level=True)

from mmattn.demo.desk import Shop
from mmattn.demo.examples import Examples
from mmattn.demo.models import Models


@pytest.fixture(scope="session")
def shop() -> Shop:
    return Shop(Models("scenes-llava", device="cpu"), Examples())


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The page as `mmattn demo` serves it, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from mmattn.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        yield found[0]
        server.terminate()
