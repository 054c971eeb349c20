"""The server as clients see it: nobody sees another's state, and nothing but uploads is read."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import mmattn
from mmattn.cli.demo import demo
from mmattn.demo.desk import Shop
from mmattn.demo.state import ONE_HEAD
from mmattn.demo.steering import DIM
from tests.demo.test_uploads import bomb

# The client of gradio leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def ask(client: Client, picture: Any, prompt: str) -> str:
    """The answer, as words joined."""
    view = (4, 0, ONE_HEAD, 0.75, False)
    words, *_ = client.predict("scenes-llava", picture, prompt, "greedy", 32, False, 0, *view, api_name="/ask")
    return "".join(word["token"] for word in words).strip()


def get(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(urllib.parse.urljoin(address, path), timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, verbose=False)


def test_two_visitors_do_not_see_each_other(address: str, shop: Shop, tmp_path: Path) -> None:
    clients = [Client(address, verbose=False) for _ in range(2)]
    files = []
    for number in (1, 10):
        files.append(tmp_path / f"{number}.png")
        shop.examples.all[number].picture.image.save(files[-1])
    model = shop.models.get("scenes-llava")
    expected = [model.generate(file, "Describe the image.", max_new_tokens=32)[0].text for file in files]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            answers = pool.map(
                lambda one: ask(one[0], handle_file(str(one[1])), "Describe the image."),
                zip(clients, files, strict=True),
            )
            assert list(answers) == expected
    for one, text in zip(clients, expected, strict=True):
        exported, code = one.predict(api_name="/export_ask")
        report = next(Path(name) for name in exported if name.endswith(".json"))
        assert json.loads(report.read_text())["answer"] == text
        assert "model.generate" in code
    with pytest.raises(AppError, match="nothing to export"):
        Client(address, verbose=False).predict(api_name="/export_ask")


def test_hostile_uploads_are_told_and_the_app_lives_on(client: Client, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("I am no picture")
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    bomb(tmp_path / "bomb.png", 60_000, 60_000)
    bomb(tmp_path / "50mp.png", 10_000, 5_000)
    Image.new("RGB", (1, 10_000)).save(tmp_path / "thin.png")
    for name, reason in [
        ("text.png", "not a picture"), ("drawing.svg", "not a picture"), ("bomb.png", "too large"),
        ("50mp.png", "too large"), ("thin.png", "too small"),
    ]:  # fmt: skip
        with pytest.raises(AppError, match=reason):
            ask(client, handle_file(str(tmp_path / name)), "Describe the image.")
    shop.examples.all[1].picture.image.save(tmp_path / "good.png")
    assert "scissors" in ask(client, handle_file(str(tmp_path / "good.png")), "Describe the image.")


def call(address: str, name: str, data: list[Any]) -> str:
    """What the server says to values that no ordinary client would send."""
    url = urllib.parse.urljoin(address, f"gradio_api/call/{name}")
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        number = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{url}/{number}", timeout=20) as reply:
        return str(reply.read().decode())


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "HERE", "http://127.0.0.1:1/x.png"])
@pytest.mark.parametrize("field", ["path", "url"])
def test_what_was_not_uploaded_is_not_read(address: str, tmp_path: Path, path: str, field: str) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "private.png")
    given = {"path": None, "url": None, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    file = {**given, field: str(tmp_path / "private.png") if path == "HERE" else path}
    common = ["scenes-llava", file, "Describe the image."]
    asked = call(address, "ask", [*common, "greedy", 8, False, 0, 4, 0, ONE_HEAD, 0.75, False])
    drawing = {"background": file, "layers": [file], "composite": file, "id": None}
    led = call(address, "lead", ["scenes-llava", None, "what?", drawing, "", DIM, 1, "instaboost"])
    for said in (asked, led):
        assert "event: error" in said
        assert "event: complete" not in said


def test_files_are_not_served(address: str) -> None:
    here = Path.cwd()
    for path in ("/etc/passwd", here / "pyproject.toml", here / "mmattn" / "vlm.py", Path.home() / ".bashrc"):
        assert get(address, f"gradio_api/file={path}") in (403, 404), path
    assert get(address, "gradio_api/file=../../../../etc/passwd") in (403, 404)
    assert get(address, "gradio_api/proxy=http://127.0.0.1:1/") >= 400
    assert get(address, "") == 200


def test_it_listens_on_this_machine_only(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    others = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        with pytest.raises(ConnectionRefusedError), socket.create_connection((other, parts.port), timeout=2):
            pass


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("mmattn.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(mmattn.MmattnError, match=r"mmattn\[demo\]"):
        demo()
