"""The program as users call it: what it prints, and how it ends when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmattn import cli
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
    with Image.open(target) as picture:
        assert picture.width > 500


def test_lists(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = run(capsys, monkeypatch, "methods")
    assert code == 0
    assert "vcd: Contrast with a noised copy" in out
    assert "alpha=1.0, beta=0.1, noise_step=500" in out
    names = [row["name"] for row in json.loads(run(capsys, monkeypatch, "methods", "--json")[1])]
    assert names == ["greedy", "vcd", "boost"]
    assert "scenes-llava" in run(capsys, monkeypatch, "models")[1]
    assert "llava" in json.loads(run(capsys, monkeypatch, "models", "--json")[1])["families"]


BAD = [
    (["generate", "nowhere.png", "-p", "q"], "nowhere.png does not exist. Check the path."),
    (["generate", "{folder}/broken.jpg", "-p", "q"], "broken.jpg"),
    (["generate", "{folder}/0.png", "-p", " "], "prompt is empty"),
    (["generate", "{folder}/0.png", "-p", "q", "--method", "vdc"], "Did you mean vcd"),
    (["generate", "{folder}/0.png", "{folder}/1.png", "-p", "a", "-p", "b", "-p", "c"], "2 pictures and 3 prompts"),
    (["attend", "{folder}/0.png", "-p", "q", "--rows", "zebra"], "do not stand in the prompt"),
    (["attend", "{folder}/0.png", "-p", "q", "--layer", "9"], "no layer 9"),
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


def test_usage_errors_and_help_do_not_load_torch() -> None:
    code = "import sys, mmattn.cli; assert 'torch' not in sys.modules, 'slow start'"
    subprocess.run([sys.executable, "-c", code], check=True)


UNEXPECTED: list[tuple[BaseException, int, str]] = [
    (ZeroDivisionError("division by zero\nmore"), 1, "unexpected ZeroDivisionError: division by zero. Please report"),
    (OSError(28, "No space left on device", "x.json"), 1, "x.json: No space left on device"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), 1, "Out of memory. Use a smaller"),
    (MemoryError(), 1, "Out of memory"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize(("error", "status", "message"), UNEXPECTED, ids=lambda one: type(one).__name__)
def test_even_the_unexpected_is_one_line(
    error: BaseException, status: int, message: str, capsys: Any, monkeypatch: Any
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "_status", fail)
    code, out, err = run(capsys, monkeypatch, "models")
    assert (code, out) == (status, "")
    assert err.startswith(f"mmattn: {message}")
    assert err.count("\n") == 1


def _program(shell: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -c 'from mmattn.cli import main; main()' {shell}"
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    done = _program("methods > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "mmattn: No space left on device. --traceback shows where.\n"


def test_a_closed_pipe_is_quiet() -> None:
    done = _program("methods | true")
    assert done.stderr == ""


def test_a_poor_terminal_gets_escapes(monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = _program('generate nowhere.png -p "\u00e9" --method "\u00e9"')
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "\\xe9" in done.stderr
