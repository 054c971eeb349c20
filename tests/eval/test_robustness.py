"""Damaged pictures, where the truth is in them, and the runs over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mmattn
from mmattn import cli
from mmattn.cli import options
from mmattn.errors import MmattnError
from mmattn.eval import pointing
from mmattn.eval.referring import Target, Targets
from mmattn.eval.robustness import evaluate_robustness, markdown
from mmattn.eval.variants import GRADES, KINDS, Variant
from mmattn.grounding import Mean


def _picture(size: tuple[int, int] = (90, 60)) -> Image.Image:
    random = np.random.default_rng(1)
    return Image.fromarray(random.integers(60, 200, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_each_grade_does_more_damage_and_is_the_same_again(kind: str) -> None:
    grains = np.asarray(_picture().resize((360, 240), Image.Resampling.BICUBIC)) // 8
    slope = np.linspace(40, 200, 360)[None, :, None]
    smooth = Image.fromarray((grains + slope).astype(np.uint8))
    before, last = np.asarray(smooth).astype(float), 0.0
    for grade in range(1, GRADES + 1):
        variant = Variant(kind, grade)
        changed = variant.picture(smooth, "a")
        assert changed.size == smooth.size
        far = float(np.abs(np.asarray(changed) - before).mean())
        assert far > last
        last = far
        assert changed.tobytes() == variant.picture(smooth, "a").tobytes()
    drawn = kind in ("noise", "occlusion")
    assert (Variant(kind, 3).picture(smooth, "b").tobytes() != Variant(kind, 3).picture(smooth, "a").tobytes()) is drawn


def test_the_box_turns_with_the_picture() -> None:
    """A bright square is found where its box then is."""
    for size, box in (((200, 120), (140.0, 20.0, 160.0, 40.0)), ((120, 200), (20.0, 150.0, 40.0, 170.0))):
        pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        pixels[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 255
        for grade in range(1, GRADES + 1):
            variant = Variant("rotation", grade)
            turned = np.asarray(variant.picture(Image.fromarray(pixels), "a"))[..., 0].astype(float)
            ys, xs = (turned > 200).nonzero()
            left, top, right, bottom = variant.box(box, size)
            assert (left + right) / 2 == pytest.approx(xs.mean() + 0.5, abs=0.7)
            assert (top + bottom) / 2 == pytest.approx(ys.mean() + 0.5, abs=0.7)
            assert (right - left, bottom - top) == pytest.approx((20, 20))
    assert Variant("noise", 1).box((1, 2, 3, 4), (9, 9)) == (1, 2, 3, 4)


@pytest.mark.parametrize(("kind", "grade"), [("fog", 1), ("noise", 0), ("noise", 6), ("noise", 1.5)])
def test_bad_variants(kind: str, grade: Any) -> None:
    with pytest.raises(MmattnError):
        Variant(kind, grade)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        _picture().save(tmp_path / name)
    screens = [
        {"img_filename": name, "instruction": "the dog", "bbox": [10, 10, 40, 30], "data_type": "icon"}
        for name in ("a.png", "b.png")
    ]
    (tmp_path / "targets.json").write_text(json.dumps(screens))
    return tmp_path


def test_a_run_for_each_variant_and_the_drop(vlm: mmattn.VLM, folder: Path) -> None:
    targets = Targets(
        "mine",
        (Target("1", "a.png", "the dog", (10, 10, 50, 40)), Target("2", "b.png", "it", (0, 0, 60, 60))),
        "0" * 64,
    )
    variants = [Variant("rotation", 5), Variant("occlusion", 5)]
    out = folder / "out"
    given: dict[str, Any] = {"methods": {"mean": Mean(tokens="last")}, "variants": variants, "progress": False}
    results = evaluate_robustness(vlm, targets, folder, out=out, **given)
    assert list(results["variants"]) == ["clean", "rotation-5", "occlusion-5"]
    for variant in variants:
        told = results["variants"][variant.name]["mean"]
        hits = []
        for target in targets.targets:
            shown = variant.picture(Image.open(folder / target.image).convert("RGB"), target.image)
            found = vlm.ground(shown, target.query, method=Mean(tokens="last"))
            assert found.point is not None
            hits.append(pointing.inside(found.point, variant.box(target.box, shown.size)))
        assert told["click"]["value"] == np.mean(hits)
        assert told["drop"]["value"] == np.mean(hits) - results["variants"]["clean"]["mean"]["click"]["value"]
    assert "drop" not in results["variants"]["clean"]["mean"]
    assert json.loads((out / "robustness.json").read_text()) == results
    assert markdown(results).splitlines()[2].startswith("| clean | ")
    before = (out / "clean" / "samples.jsonl").read_text()
    assert evaluate_robustness(vlm, targets, folder, out=out, **given) == results
    assert (out / "clean" / "samples.jsonl").read_text() == before


def test_commands(vlm: mmattn.VLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_model", lambda *_, **__: vlm)
    monkeypatch.setenv("MMATTN_HOME", str(folder / "home"))

    def call(*words: object) -> Any:
        return CliRunner().invoke(cli.app, ["eval", "ground", *map(str, words)], catch_exceptions=False)

    given = ("--annotations", folder / "targets.json", "--images", folder, "--kind", "screenspot", "--method", "mean")
    told = json.loads(call(*given, "--robust", "noise-2, blur-1", "--out", folder / "r", "--json").stdout)
    assert list(told["variants"]) == ["clean", "noise-2", "blur-1"]
    screens = json.loads(call("--screens", "--limit", 1, "--method", "mean", "--out", folder / "s", "--json").stdout)
    assert list(screens["benchmarks"]) == ["screens"]
    assert {"screens", "screens-text"} <= set(screens["metrics"])
    for words, message in (
        (("--screens", *given), "name two sets"),
        ((*given, "--robust", "noise-x"), "no kind of damage with its grade"),
        ((*given, "--robust", "fog"), "Unknown kind of damage"),
        ((*given, "--robust", ","), "No kind of damage"),
    ):
        with pytest.raises(MmattnError, match=message):
            call(*words)
