"""Compare, Ground, Prompt and Inspect without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.decoding import VAR, resolve
from mmattn.demo import grounding
from mmattn.demo.asking import ask
from mmattn.demo.compare import CompareTab
from mmattn.demo.comparing import DIFFERS, INVENTED, Result, compare, cost, marked, pieces, told_of
from mmattn.demo.controls import expression, harmless, parameters
from mmattn.demo.desk import Desk, Shop
from mmattn.demo.examples import Mention
from mmattn.demo.ground import GroundTab
from mmattn.demo.inspect import InspectTab
from mmattn.demo.inspecting import inspect, sink_map
from mmattn.demo.prompt import PromptTab, boxed, painted
from mmattn.demo.state import Picture, Settings
from mmattn.demo.steering import DIM, EMPHASISE, REFER, boxes_of, dim_by_question, lead_by_hand
from mmattn.demo.watching import sinks_of
from tests.demo.test_ask import run
from tests.tiny import FAMILIES

NAME = "scenes-llava"
REFUSED = re.compile("cannot be set|Cannot read")
SETTINGS = Settings(NAME, max_new_tokens=32)
ASKED = "Describe the image."


@pytest.fixture(scope="session")
def model(shop: Shop) -> mmattn.VLM:
    return shop.models.get(NAME)


@pytest.fixture(scope="session")
def picture(shop: Shop) -> Picture:
    return shop.examples.all[3].picture


def desk(shop: Shop) -> Desk:
    """Enough of a desk for the handlers."""
    return Desk(shop, *[None] * 4)  # type: ignore[arg-type]


def tab(kind: type, shop: Shop) -> Any:
    made = object.__new__(kind)
    made.desk = desk(shop)
    return made


def exported(shop: Shop, made: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The JSON of an export whose lines make its picture again, if they make one."""
    name, picture, export = made
    files, lines = shop.exports.write(export, name, picture, shop.examples.find(picture))
    if any(one.endswith("mask.png") for one in files):
        (folder / "mask.png").write_bytes((Path(files[0]).parent / "mask.png").read_bytes())
    run(lines, shop, folder, monkeypatch)
    again = folder / f"{export.name}.png"
    if again.is_file():
        with Image.open(again) as one, Image.open(files[0]) as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))
    report: dict[str, Any] = json.loads((Path(files[0]).parent / f"{export.name}.json").read_text())
    return report


@pytest.mark.parametrize("method", [one.name for one in mmattn.methods()])
def test_controls_come_from_the_methods_own_fields(method: str) -> None:
    fields = parameters([method])
    known = next(one.parameters for one in mmattn.methods() if one.name == method)
    hidden = set(known) - {one.name for one in fields}
    assert hidden <= {"scores", "digest", "clip"}, "a new hyper-parameter is shown, or known to name a file"
    assert {one.name: one.default for one in fields} == {k: v for k, v in known.items() if k not in hidden}
    assert expression([method], [one.default for one in fields]) == method
    other = {one.name: 0.5 for one in fields if type(one.default) is float and one.name != "gamma"}
    changed = [other.get(one.name, one.default) for one in fields]
    written = expression([method, "vcd"], [*changed, *(one.default for one in parameters(["vcd"]))])
    single = written.removesuffix("+vcd")
    assert resolve(single).settings() == {**resolve(method).settings(), **other}


@pytest.mark.parametrize(
    "method",
    [
        "v-seam(scores='/etc/passwd')", "vcd+api(scorer='clip', clip='/tmp')", "v-seam(scores=('/etc/passwd'))",
        "v-seam(scores=r'x')", "v-seam(digest=b'x')", "v-seam(**{'scores': 'x'})", "v-seam(scores='x'", "(" * 500,
    ],
)  # fmt: skip
def test_methods_that_name_files_are_refused(model: mmattn.VLM, picture: Picture, method: str) -> None:
    with pytest.raises(mmattn.MmattnError, match=REFUSED):
        harmless(method)
    with pytest.raises(mmattn.MmattnError, match=REFUSED):
        list(compare(model, picture, ASKED, ["greedy", method], SETTINGS, Event()))
    with pytest.raises(mmattn.MmattnError, match=REFUSED):
        list(ask(model, picture, ASKED, Settings(NAME, method), Event()))


def test_ordinary_methods_are_harmless() -> None:
    for method in (
        "greedy",
        " split-softmax(power=0.5) + vcd(alpha=-1)",
        "pasta(on='image', heads='0:1')",
        "api(layer=3)",
    ):
        assert harmless(method) == method


def test_methods_are_compared_and_marked(
    shop: Shop, model: mmattn.VLM, picture: Picture, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    methods = ["greedy", "vcd(alpha=0.5)", "boost+vcd", "vcd+icd"]
    *_, last = compare(model, picture, ASKED, methods, SETTINGS, Event())
    for result in last.results[:3]:
        expected = model.generate(picture.image, ASKED, method=result.method, max_new_tokens=32)[0]
        assert (result.text, result.tokens) == (expected.text, len(expected.token_ids))
    assert "both rewrite" in last.results[3].error
    answers = marked(last.results, shop.examples, picture)
    assert [label for text, label in answers[0] if text == "bowl"] == [INVENTED]
    assert "".join(text for text, _ in answers[1]) == last.results[1].text
    capsys.readouterr()
    report = exported(shop, tab(CompareTab, shop).export(last), tmp_path, monkeypatch)
    assert report["results"][0]["invented"] == 1
    printed = capsys.readouterr().out
    assert all(f"{one['method']}: {one['text']}" in printed for one in report["results"])


def test_what_is_invented_outweighs_what_differs() -> None:
    found = pieces("a cup and a dog", [(2, 5), (12, 15)], [Mention("dog", 12, 15, False), Mention("cup", 2, 5, True)])
    assert found == [("a ", None), ("cup", DIFFERS), (" and a ", None), ("dog", INVENTED)]
    assert pieces("", [], []) == []


def test_costs_are_told() -> None:
    assert cost("greedy") == {"rows_per_step": 1, "extra_passes": "none"}
    assert cost("var+rbd")["rows_per_step"] == 3
    assert "one prefill" in cost("var+rbd")["extra_passes"]
    assert cost("vhr")["rows_per_step"] == 1
    assert "<b>2 invented</b>" in told_of(Result("greedy", "x", 3, 0.1, "stop"), 2)
    assert "cut off" in told_of(Result("greedy", "x", 3, 0.1, "length"), None)


def test_a_comparison_needs_two_methods_and_can_be_stopped(model: mmattn.VLM, picture: Picture) -> None:
    with pytest.raises(mmattn.MmattnError, match="nothing to compare"):
        list(compare(model, picture, ASKED, ["greedy"], SETTINGS, Event()))
    stop = Event()
    news = compare(model, picture, ASKED, ["greedy", "vcd"], SETTINGS, stop)
    next(news)
    stop.set()
    *_, last = news
    assert last.results[0].finish == "stopped"
    assert last.results[1].text == ""


def test_grounding_meets_the_truth(
    shop: Shop, model: mmattn.VLM, picture: Picture, tmp_path: Path, monkeypatch: Any
) -> None:
    found = grounding.ground(model, NAME, picture, "the umbrella", "heads", shop.examples)
    assert found.truth == tuple(map(tuple, shop.examples.all[3].boxes["umbrella"]))
    assert "inside the <span" in grounding.told_of(found)
    assert grounding.drawn(found, 0.5).size == (512, 512)
    clicked = grounding.clicked(found, 256, 128)
    assert clicked.click == (168, 84)
    assert "is outside the true box" in grounding.told_of(clicked)
    report = exported(shop, tab(GroundTab, shop).export(clicked), tmp_path, monkeypatch)
    assert report["point"] == list(found.grounding.point or ())
    assert report["click"] == [168, 84]


def test_overlaps() -> None:
    assert grounding.overlap((0, 0, 2, 2), [(9, 9, 10, 10), (1, 0, 3, 2)]) == pytest.approx(1 / 3)
    assert grounding.overlap((0, 0, 2, 2), []) == 0
    assert grounding.inside((1, 1), [(0, 0, 2, 2)])
    assert not grounding.inside((2, 1), [(0, 0, 2, 2)])


def test_tiles_of_the_screenshot_are_known(shop: Shop) -> None:
    screen = shop.examples.screen
    name, (box,) = next(iter(screen.boxes.items()))
    assert grounding.true_boxes(shop.examples, screen.picture, f"the {name}") == (box,)
    assert grounding.true_boxes(shop.examples, Picture(screen.picture.image.rotate(1), "x"), name) == ()


def test_queries_are_shown_and_not_run(shop: Shop, model: mmattn.VLM, picture: Picture) -> None:
    found = grounding.ground(model, NAME, picture, "<img src=x>", "tag(tokens='last')", shop.examples)
    assert "<img" not in grounding.told_of(found)


@pytest.mark.parametrize("scorer", ["lvlm", "contrast", "clip"])
def test_a_question_dims_the_picture(
    shop: Shop, model: mmattn.VLM, picture: Picture, scorer: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    led = dim_by_question(model, NAME, picture, "Is there an umbrella?", scorer, 0.8, 5)
    assert np.asarray(led.image).mean() < np.asarray(picture.image).mean()
    capsys.readouterr()
    report = exported(shop, tab(PromptTab, shop).export(led), tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip() == report["after"] == led.after
    plain = dim_by_question(model, NAME, picture, "Is there an umbrella?", scorer, 0, 5)
    assert (plain.after, plain.image) == (plain.before, picture.image)


@pytest.mark.parametrize("how", [DIM, EMPHASISE, REFER])
def test_a_painted_region_leads_the_eye(
    shop: Shop, model: mmattn.VLM, picture: Picture, how: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    mask = np.zeros((512, 512), np.float32)  # as it is painted, larger than the picture
    mask[330:480, 360:512] = 1
    strength = 1.0 if how == DIM else 9.0
    led = lead_by_hand(model, NAME, picture, ASKED, mask, how, strength, "instaboost")
    capsys.readouterr()
    report = exported(shop, tab(PromptTab, shop).export(led), tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip() == report["after"] == led.after
    if how == DIM:
        assert led.after == "The image shows an umbrella."
        assert np.asarray(led.image)[:200].max() == 0
    elif how == EMPHASISE:
        assert report["inside"]["after"] > report["inside"]["before"]
        plain = lead_by_hand(model, NAME, picture, ASKED, mask, how, 1, "instaboost")
        assert plain.before == plain.after == led.before
    else:
        assert max(report["activations"]) > report["activations"][0]


def test_drawings_become_masks_and_boxes(picture: Picture) -> None:
    layer = Image.new("RGBA", (40, 20))
    layer.paste((0, 255, 255, 255), (5, 2, 15, 8))
    other = Image.new("RGBA", (40, 20))
    other.paste((0, 255, 255, 90), (30, 10, 40, 20))
    mask = painted({"background": None, "layers": [layer, other], "composite": None})
    assert mask is not None
    assert boxes_of(mask) == [(5, 2, 15, 8), (30, 10, 40, 20)]
    assert painted(None) is None
    assert painted({"layers": []}) is None
    typed = boxed("10, 20 30,40", picture)
    assert typed is not None
    assert boxes_of(typed) == [(10, 20, 30, 40)]
    for wrong in ("a b c d", "1,2,3", "900,900,950,950"):
        with pytest.raises(mmattn.MmattnError, match="box"):
            boxed(wrong, picture)


def test_nothing_painted_is_told(model: mmattn.VLM, picture: Picture) -> None:
    for mask in (None, np.zeros((5, 5), np.float32)):
        with pytest.raises(mmattn.MmattnError, match="Nothing is painted"):
            lead_by_hand(model, NAME, picture, ASKED, mask, DIM, 1, "instaboost")


def test_watching_sees_what_var_does_and_changes_nothing(model: mmattn.VLM, picture: Picture) -> None:
    plain = model.attend(picture.image, ASKED).weights[:, :, 0]
    var = VAR(tau=2, rho=1, summ=0, p=0.3)  # so low that there are sinks
    sinks = sinks_of(model, picture.image, ASKED, var)
    assert torch.allclose(sinks.read.weights[:, :, 0], plain, atol=1e-5)
    assert torch.allclose(sinks.share, plain.sum(-1), atol=1e-6)
    assert sinks.sinks.any()
    layer = int(sinks.sinks.sum(-1).argmax())
    # VAR in that layer alone: below it the model is plain, so that what it does there can be read.
    alone = VAR(tau=2, rho=1, summ=0, p=0.3, start=layer, spared=sinks.read.depth - 1 - layer)
    edited = model.attend(picture.image, ASKED, method=alone).weights[layer, :, 0]
    flagged = sinks.sinks[layer]
    assert torch.allclose(edited[:, flagged], 0.3 * plain[layer][:, flagged], atol=1e-6)
    grown = (edited - plain[layer])[:, ~flagged].sum(-1)
    assert torch.allclose(grown, sinks.moved[layer], atol=1e-5)
    assert not sinks.moved[0].any(), "VAR leaves the first layers alone"
    with pytest.raises(mmattn.MmattnError, match="moves nothing"):
        sinks_of(model, picture.image, ASKED, VAR(p=1))


def test_an_answer_is_inspected(
    shop: Shop, model: mmattn.VLM, picture: Picture, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    page = tab(InspectTab, shop)
    answer, *plots, line, image, _, found = page.start(NAME, picture, ASKED, 2, 0.6, 99)
    assert "".join(text for text, _ in answer) == found.signals.text
    assert all(plot.width > 500 for plot in plots)
    assert "sinks in layer" in line
    assert image.size == (512, 512)
    plain = inspect(model, NAME, picture, ASKED, VAR(tau=1000))
    assert np.abs(np.asarray(sink_map(plain, 2), int) - np.asarray(sink_map(found, 2), int)).max() > 50
    capsys.readouterr()
    report = exported(shop, page.export(found, 2), tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith(report["answer"])
    assert len(report["words"]) == len(found.words)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_inspected_and_compared(family: str) -> None:
    model = mmattn.wrap(*FAMILIES[family]())
    noise = Picture(Image.effect_noise((90, 60), 80).convert("RGB"), "noise.png")
    found = inspect(model, "x", noise, "what is it?", VAR(tau=1.5))
    assert sink_map(found, 0).size == (512, 341)
    *_, last = compare(model, noise, "what?", ["greedy", "vcd"], Settings("x", max_new_tokens=2), Event())
    assert all(one.finish for one in last.results)
