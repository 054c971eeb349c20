"""The program as users call it: what it prints, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmattn import cli
from mmattn.decoding.registry import METHODS
from tests.tiny import tiny_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    model, processor = tiny_llava()
    model.save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    for index, size in enumerate([(80, 60), (50, 90)]):
        Image.new("RGB", size, (index * 90, 40, 200)).save(path / f"{index}.png")
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: Any) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["mmattn", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    code = exit_.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_generate(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    model = folder / "model"
    code, out, _ = run(
        capsys, monkeypatch, "generate", folder / "0.png", "-p", "what?", "-p", "is it?", "--model", model, "--json",
        "--method", "vcd(alpha=0.5)", "--max-new-tokens", 3, "--device", "cpu",
    )  # fmt: skip
    report = json.loads(out)
    assert code == 0
    assert [row["prompt"] for row in report["answers"]] == ["what?", "is it?"]
    assert report["method"] == {"name": "vcd", "alpha": 0.5, "beta": 0.1, "noise_step": 500}
    code, out, _ = run(
        capsys, monkeypatch, "generate", folder / "0.png", folder / "1.png", "-p", "q", "--model", model, "--sample"
    )
    assert code == 0
    assert out.count("\tq\t") == 2


def test_emphasis(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    words = ["generate", folder / "0.png", "-p", "what?", "-p", "what is it?", "--model", folder / "model", "--json"]
    words += ["--max-new-tokens", 4]

    def answers(*more: Any) -> list[str]:
        return [row["text"] for row in json.loads(run(capsys, monkeypatch, *words, *more)[1])["answers"]]

    plain = answers()
    marked = answers("--emphasise", "what", "--emphasise-box", "20,10,60,50", "--strength", 500)
    assert marked != plain
    assert (
        answers("--emphasise", "what", "--emphasise-box", "20,10,60,50", "--method", "instaboost(strength=500)")
        == marked
    )
    assert answers("--emphasise", "what", "--strength", 1, "--by", "pasta") == plain


def test_attend_writes_the_picture(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    target = tmp_path / "new" / "map.png"
    code, out, _ = run(
        capsys, monkeypatch, "attend", folder / "1.png", "-p", "where is the cat?", "--rows", "cat", "--layer", 1,
        "--out", target, "--model", folder / "model", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert [row["token"] for row in report["rows"]] == ["c", "a", "t"]
    assert 0 <= report["peak"][0] <= 50
    assert 0 <= report["peak"][1] <= 90
    assert report["picture"] == str(target)
    with Image.open(target) as picture:
        assert picture.width > 500


def test_attend_tells_the_path_that_was_written(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    words = ["attend", folder / "1.png", "-p", "q", "--out", tmp_path / "map", "--model", folder / "model"]
    assert f"Written: {tmp_path / 'map.png'}\n" in run(capsys, monkeypatch, *words)[1]
    assert json.loads(run(capsys, monkeypatch, *words, "--json")[1])["picture"] == str(tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


def test_lists(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = run(capsys, monkeypatch, "methods")
    assert code == 0
    assert "vcd: Contrast with a noised copy" in out
    assert "alpha=1.0, beta=0.1, noise_step=500" in out
    names = [row["name"] for row in json.loads(run(capsys, monkeypatch, "methods", "--json")[1])]
    assert names == list(METHODS)
    code, out, _ = run(capsys, monkeypatch, "methods", "vhr")
    assert (code, out.count("source")) == (0, 1)
    assert "preset      vhr(layers=18) (InstructBLIP)" in out
    assert "layers: how many of the last layers are reinforced." in out
    assert "Did you mean vcd" in run(capsys, monkeypatch, "methods", "vdc")[2]
    assert "scenes-llava" in run(capsys, monkeypatch, "models")[1]
    assert "llava" in json.loads(run(capsys, monkeypatch, "models", "--json")[1])["families"]


BAD = [
    (["generate", "nowhere.png", "-p", "q"], "nowhere.png does not exist. Check the path."),
    (["generate", "{folder}/broken.jpg", "-p", "q"], "broken.jpg"),
    (["generate", "{folder}/0.png", "-p", " "], "prompt is empty"),
    (["generate", "{folder}/0.png", "-p", "\udcff"], "prompt is not UTF-8"),
    (["attend", "{folder}/0.png", "-p", "\udcff"], "prompt is not UTF-8"),
    (["attend", "{folder}/0.png", "-p", "q", "--answer", "\udcff"], "answer is not UTF-8"),
    (["generate", "{folder}/0.png", "-p", "q", "--method", "vdc"], "Did you mean vcd"),
    (["generate", "{folder}/0.png", "{folder}/1.png", "-p", "a", "-p", "b", "-p", "c"], "2 pictures and 3 prompts"),
    (["attend", "{folder}/0.png", "-p", "q", "--rows", "zebra"], "do not stand in the prompt"),
    (["attend", "{folder}/0.png", "-p", "q", "--layer", "9"], "no layer 9"),
    (["generate", "{folder}/0.png", "-p", "q", "--emphasise-box", "1,2,x"], "Cannot read the box '1,2,x'"),
    (["generate", "{folder}/0.png", "-p", "q", "--strength", "3"], "nothing to emphasise"),
    (["attend", "{folder}/0.png", "-p", "q", "--emphasise", "r"], "do not stand in the prompt"),
    (["attend", "{folder}/0.png", "-p", "q", "--out", "/proc/none/x.png"], "Cannot write"),
    (["generate", "{folder}/0.png", "-p", "q", "--sample", "--temperature", "nan"], "temperature"),
    (["generate", "{folder}/0.png", "-p", "q", "--method", "vcd(alpha=1e999)"], "VCD alpha"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[row[1] for row in BAD])
def test_problems_are_one_line_and_status_2(
    words: list[str], message: str, folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    words = [word.format(folder=folder) for word in words]
    code, out, err = run(capsys, monkeypatch, *words, "--model", folder / "model", "--device", "cpu")
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("mmattn: ")


def test_a_traceback_is_shown_when_asked_for(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["mmattn", "generate", "nowhere.png", "-p", "q", "--traceback"])
    with pytest.raises(cli.MmattnError):
        cli.main()


def _spoilt(folder: Path, target: Path, name: str, spoil: Callable[[bytes], bytes]) -> Path:
    """A copy of the model folder with one file changed (or made)."""
    shutil.copytree(folder / "model", target)
    old = (target / name).read_bytes() if (target / name).exists() else b""
    (target / name).write_bytes(spoil(old))
    return target


SPOILT: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("model.safetensors", lambda raw: raw[: len(raw) // 2], "Cannot load"),
    ("model.safetensors", lambda raw: b"", "Cannot load"),
    ("config.json", lambda raw: raw[:40], "Cannot load"),
    ("config.json", lambda raw: raw.replace(b'"hidden_size": 32', b'"hidden_size": 64'), "Cannot load"),
    ("config.json", lambda raw: raw.replace(b'"hidden_size": 32', b'"hidden_size": "x"'), "Cannot load"),
    ("config.json", lambda raw: b"[]", "Cannot load"),
    ("tokenizer.json", lambda raw: b"{}", "Cannot load"),
    ("mmattn.json", lambda raw: b"[1]", "localisation_head"),
    ("mmattn.json", lambda raw: b"{", "is not JSON"),
    ("mmattn.json", lambda raw: b"[" * 100_000, "is not JSON"),
    ("mmattn.json", lambda raw: b'{"localisation_head": {"layer": 1}}', "localisation_head"),
    ("mmattn.json", lambda raw: b'{"localisation_head": 3}', "localisation_head"),
    ("mmattn.json", lambda raw: b'{"localisation_head": [1, 2]}', "localisation_head"),
    ("mmattn.json", lambda raw: b'{"localisation_head": {"layer": 1, "head": "0"}}', "localisation_head"),
    ("mmattn.json", lambda raw: b'{"localisation_head": {"layer": -1, "head": true}}', "localisation_head"),
    ("mmattn.json", lambda raw: b'{"grounding_heads": [[1, 2]]}', "grounding_heads"),
    ("mmattn.json", lambda raw: b'{"grounding_heads": {"heads": []}}', "grounding_heads"),
    ("mmattn.json", lambda raw: b'{"grounding_heads": {"heads": [[1, 2], [1, true]]}}', "grounding_heads"),
    ("mmattn.json", lambda raw: b'{"grounding_heads": {"heads": [[1, 2, 3]]}}', "grounding_heads"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), SPOILT)
def test_damaged_model_folders_are_one_line(
    name: str,
    spoil: Callable[[bytes], bytes],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
) -> None:
    model = _spoilt(folder, tmp_path / "m", name, spoil)
    code, out, err = run(capsys, monkeypatch, "generate", folder / "0.png", "-p", "q", "--model", model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "unexpected" not in err


@pytest.mark.parametrize("device", ["xpu", "meta", "mps", "hpu", "vulkan", "cpu:x", "", "cuda:4000"])
def test_unusable_devices_are_one_line(device: str, folder: Path, capsys: Any, monkeypatch: Any) -> None:
    words = ["generate", folder / "0.png", "-p", "q", "--model", folder / "model", "--device", device]
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "evice" in err


UNFORESEEN: list[tuple[BaseException, int, str]] = [
    (ZeroDivisionError("by\nzero"), 1, "unexpected ZeroDivisionError: by. Run again with --traceback"),
    (KeyError(), 1, "unexpected KeyError. Run again with --traceback"),
    (OSError(28, "No space left on device", "/a/b"), 1, "/a/b: No space left on device"),
    (OSError("odd"), 1, "Cannot read or write: odd"),
    (MemoryError(), 2, "Out of memory"),
    (
        RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        2,
        "Out of memory",
    ),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "Out of memory"),
    (cli.MmattnError("a name\nof two lines is odd", "Rename it."), 2, "a name of two lines is odd. Rename it."),
]


@pytest.mark.parametrize(("error", "status", "message"), UNFORESEEN, ids=[repr(row[0])[:20] for row in UNFORESEEN])
def test_the_unforeseen_is_one_line_too(
    error: BaseException, status: int, message: str, folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cli.basics.options, "load_model", fail)
    words = ["generate", folder / "0.png", "-p", "q"]
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(f"mmattn: {message}")
    monkeypatch.setattr(sys, "argv", ["mmattn", *map(str, words), "--traceback"])
    with pytest.raises(type(error)):
        cli.main()


def test_an_interruption_ends_with_130(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.basics.options, "load_model", fail)
    assert run(capsys, monkeypatch, "generate", folder / "0.png", "-p", "q")[0] == 130


def _program(words: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a shell of its own."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -c 'import mmattn.cli; mmattn.cli.main()' {words} {redirect}"],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("words", "unbuffered"), [("models", ""), ("--help", "1")])
def test_a_full_output_is_one_line(words: str, unbuffered: str) -> None:
    done = _program(words, "> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "mmattn: Cannot read or write: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_broken_pipe_is_quiet(unbuffered: str) -> None:
    done = _program("methods", "| true", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == ""


def test_output_in_ascii_is_escaped() -> None:
    code = "import mmattn.cli.options as o; o.say(chr(233))"
    patch = f"import sys, mmattn.cli as c; c.app.command('x')(lambda: exec({code!r})); sys.argv = ['m', 'x']; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", patch], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\n", "")


def test_json_is_json_in_every_encoding() -> None:
    code = "import mmattn.cli.options as o; o.emit({'text': chr(233) + chr(0x1f600) + chr(0xd800)})"
    patch = f"import sys, mmattn.cli as c; c.app.command('x')(lambda: exec({code!r})); sys.argv = ['m', 'x']; c.main()"
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", patch], capture_output=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert json.loads(done.stdout) == {"text": "\xe9\U0001f600\ud800"}, done.stderr


@pytest.mark.parametrize("command", [["generate", "0.png", "-p", "q"], ["eval", "pope"]])
def test_an_absurd_length_is_a_usage_error(command: list[str], capsys: Any, monkeypatch: Any) -> None:
    code, _, err = run(capsys, monkeypatch, *command, "--max-new-tokens", 10**30)
    assert code == 2
    assert "--max-new-tokens" in err


def test_usage_errors_and_help_do_not_load_torch() -> None:
    code = "import sys, mmattn.cli; assert 'torch' not in sys.modules, 'slow start'"
    subprocess.run([sys.executable, "-c", code], check=True)
