"""Asking without a browser: words and their rows, maps, streaming, stopping, exports that reproduce."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.demo.ask import AskTab
from mmattn.demo.ask_export import ask_export
from mmattn.demo.ask_view import both, drawn, first_word, gallery, told_of
from mmattn.demo.asking import ask
from mmattn.demo.desk import Desk, Shop
from mmattn.demo.drawing import display_size, heat
from mmattn.demo.models import first_view
from mmattn.demo.state import ALL_MEAN, LAYER_MAX, LAYER_MEAN, ONE_HEAD, Asked, Picture, Settings, View
from mmattn.demo.streaming import Stops
from mmattn.demo.words import differing, words_of
from tests.tiny import FAMILIES

SETTINGS = Settings("scenes-llava")


def last(news: object) -> Asked:
    *_, final = news  # type: ignore[misc]
    assert isinstance(final, Asked)
    return final


def run(lines: str, shop: Shop, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program, in `folder`, with the model that is loaded already."""
    monkeypatch.setattr(mmattn, "load", shop.models.get, raising=False)
    monkeypatch.chdir(folder)
    exec(compile(lines, "lines", "exec"), {})


@pytest.fixture(scope="session")
def asked(shop: Shop) -> Asked:
    model, picture = shop.models.get("scenes-llava"), shop.examples.all[1].picture
    return last(ask(model, picture, "Describe the image.", SETTINGS, Event()))


def test_words_take_the_tokens_that_spell_them() -> None:
    #                         The   " c"   "at"   ","   " <b>"
    words = words_of("The cat, <b>", [(0, 3), (3, 5), (5, 7), (7, 8), (8, 12)])
    assert [(one.text, one.rows) for one in words] == [("The ", (0,)), ("cat, ", (1, 2)), ("<b>", (4,))]
    assert [one.rows for one in words_of("a - b", [(0, 1), (1, 3), (3, 5)])] == [(0,), (1,), (2,)]
    assert words_of("", []) == ()


def test_an_answer_streams_and_keeps_its_rows(shop: Shop, asked: Asked) -> None:
    model, picture = shop.models.get("scenes-llava"), asked.picture
    *texts, _ = ask(model, picture, " Describe the image. ", SETTINGS, Event())
    plain = model.generate(picture.image, "Describe the image.", max_new_tokens=64, capture=mmattn.Capture())[0]
    assert asked.text == plain.text == str(texts[-1]).strip()
    assert all(isinstance(one, str) for one in texts)
    assert asked.answer_rows is not None
    assert plain.attention is not None
    assert torch.equal(asked.answer_rows.weights, plain.attention.weights)
    assert "".join(word.text for word in asked.answer) == plain.text
    assert [word.text.strip() for word in asked.prompt_words] == ["Describe", "the", "image."]
    assert asked.prompt_rows is not None
    (row,) = asked.prompt_words[0].rows
    expected = model.attend(picture.image, "Describe the image.", rows="Describe").weights
    assert torch.allclose(asked.prompt_rows.weights[:, :, [row]], expected, atol=1e-6)
    assert told_of(asked, shop.examples).endswith("ms each).")
    other = last(ask(model, shop.examples.all[3].picture, "Describe the image.", SETTINGS, Event()))
    assert "Not in the picture: bowl." in told_of(other, shop.examples)


def test_maps_are_those_of_the_library_in_the_frame_of_the_picture(shop: Shop, asked: Asked) -> None:
    read, rows = asked.answer_rows, asked.answer[-1].rows
    assert read is not None
    picked = list(rows)
    for view, expected in (
        (View(how=ALL_MEAN), read.heatmap(rows=picked)),
        (View(how=LAYER_MEAN, layer=2), read.heatmap(layers=2, rows=picked)),
        (View(how=ONE_HEAD, layer=2, head=3, smooth=True), read.heatmap(layers=2, heads=3, rows=picked, smooth=True)),
        (
            View(how=LAYER_MAX, layer=1),
            np.max([read.heatmap(layers=1, heads=head, rows=picked) for head in range(8)], axis=0),
        ),
    ):
        assert np.allclose(heat(read, rows, view), expected, atol=1e-7), view
    half = heat(read, rows, View(how=ALL_MEAN), (168, 168))
    assert np.allclose(half, read.heatmap(rows=picked)[::2, ::2], atol=1e-7)
    assert [display_size(size) for size in ((336, 336), (4000, 3000), (100, 1), (700, 600))] == [
        (512, 512), (1024, 768), (512, 5), (700, 600),
    ]  # fmt: skip
    maps = gallery(asked, View(layer=2, word=3))
    assert [name for _, name in maps] == [f"head {head}" for head in range(8)]


def test_clicking_a_word_marks_it_and_draws_it(shop: Shop, asked: Asked) -> None:
    view = first_word(asked, first_view(shop.models.get("scenes-llava")))
    answer, question = both(asked, view)
    assert [text for text, mark in answer if mark] == [asked.answer[-1].text]
    assert not any(mark for _, mark in question)
    image, line = drawn(asked, view)
    assert image.size == (512, 512)
    assert "layer 4, head 0" in line
    other, _ = drawn(asked, replace(view, where="prompt", word=0))
    assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() > 20
    assert drawn(None, view)[0] is None
    assert drawn(asked, replace(view, word=99))[1].startswith("Nothing")


def test_html_in_words_is_escaped(shop: Shop) -> None:
    model, picture = shop.models.get("scenes-llava"), shop.examples.all[0].picture
    asked = last(ask(model, picture, "<img src=x onerror=alert(1)> ?", replace(SETTINGS, max_new_tokens=2), Event()))
    for number in range(len(asked.prompt_words)):
        assert "<img" not in drawn(asked, View(where="prompt", word=number))[1]
    assert "".join(word.text for word in asked.prompt_words) == "<img src=x onerror=alert(1)> ?"


@pytest.mark.parametrize("method", ["greedy", "boost(strength=4)", "vcd"])
def test_a_stopped_answer_keeps_what_it_has(shop: Shop, asked: Asked, method: str) -> None:
    model, stop = shop.models.get("scenes-llava"), Event()
    settings = replace(SETTINGS, method=method)
    news = ask(model, asked.picture, "Describe the image.", settings, stop)
    next(news)
    stop.set()
    part = last(news)
    assert part.finish == "stopped"
    count = len(part.token_ids)
    whole = model.generate(asked.picture.image, part.prompt, method=method, max_new_tokens=64, capture=mmattn.Capture())
    assert 1 <= count < 6
    assert part.token_ids == whole[0].token_ids[:count]
    assert part.answer_rows is not None
    assert whole[0].attention is not None
    assert torch.allclose(part.answer_rows.weights, whole[0].attention.weights[:, :, :count], atol=1e-5)


def test_pages_stop_their_own_work() -> None:
    stops = Stops()
    mine, other = stops.begin("a"), stops.begin("b")
    stops.stop("a")
    stops.stop("nobody")
    assert mine.is_set()
    assert not other.is_set()
    assert not stops.begin("a").is_set()
    stops.forget("b")
    assert other.is_set()


def test_the_stop_button_ends_its_own_page(shop: Shop, asked: Asked) -> None:
    tab = object.__new__(AskTab)
    tab.desk = Desk(shop, *[None] * 4)  # type: ignore[arg-type]
    mine, other = (SimpleNamespace(session_hash=name) for name in ("mine", "other"))
    given = ("scenes-llava", asked.picture, "Describe the image.", "greedy", 64, False, 0, 4, 0, ONE_HEAD, 0.75, False)
    for presser, finish in ((other, "stop"), (mine, "stopped")):
        news = tab.start(mine, *given)  # type: ignore[arg-type]
        next(news)
        tab.desk.stop(presser)  # type: ignore[arg-type]
        *_, final = news
        assert final[4].finish == finish


@pytest.mark.parametrize(("picture", "prompt", "reason"), [(None, "x", "no picture"), ("some", "  ", "no question")])
def test_what_is_missing_is_told(shop: Shop, picture: str | None, prompt: str, reason: str) -> None:
    model = shop.models.get("scenes-llava")
    shown = shop.examples.all[0].picture if picture else None
    with pytest.raises(mmattn.MmattnError, match=reason):
        list(ask(model, shown, prompt, SETTINGS, Event()))
    with pytest.raises(mmattn.MmattnError, match="Unknown method"):
        list(ask(model, shop.examples.all[0].picture, "x", replace(SETTINGS, method="no"), Event()))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_asked(family: str) -> None:
    model = mmattn.wrap(*FAMILIES[family]())
    picture = Picture(Image.effect_noise((90, 60), 80).convert("RGB"), "noise.png")
    asked = last(ask(model, picture, "what is it?", replace(SETTINGS, max_new_tokens=4), Event()))
    assert "".join(word.text for word in asked.prompt_words) == "what is it?"
    assert (asked.prompt_rows is None) == (family == "instructblip-t5")
    if asked.answer:
        assert drawn(asked, View(word=0))[0].size == (512, 341)


@pytest.mark.parametrize(
    ("view", "settings"),
    [
        (View("answer", 4, 4, 0, ONE_HEAD), SETTINGS),
        (View("prompt", 0, 1, 0, LAYER_MAX, 0.5, True), replace(SETTINGS, method="boost(strength=3)")),
        (View("answer", 1, how=ALL_MEAN), replace(SETTINGS, sample=True, seed=3, max_new_tokens=3)),
    ],
)
def test_the_exported_lines_make_the_exported_picture(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    view: View, settings: Settings,
) -> None:  # fmt: skip
    model, example = shop.models.get("scenes-llava"), shop.examples.all[1]
    asked = last(ask(model, example.picture, "What's in the image?", settings, Event()))
    export = ask_export(model, asked, view)
    files, lines = shop.exports.write(export, "scenes-llava", example.picture, example)
    assert [Path(one).name for one in files] == ["ask.png", "ask.py", "ask.json"]
    report = json.loads(Path(files[2]).read_text())
    assert report["word"] in report["answer" if view.where == "answer" else "prompt"]
    run(lines, shop, tmp_path, monkeypatch)
    if view.where == "answer":
        assert capsys.readouterr().out.strip() == report["answer"] == asked.text
    assert (tmp_path / "ask.png").read_bytes() == Path(files[0]).read_bytes()


def test_an_uploaded_picture_comes_along(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Picture(Image.effect_noise((90, 60), 80).convert("RGB"), "mine.jpg")
    model = shop.models.get("scenes-llava")
    asked = last(ask(model, picture, "Describe the image.", replace(SETTINGS, max_new_tokens=3), Event()))
    files, lines = shop.exports.write(ask_export(model, asked, View()), "scenes-llava", picture, None)
    (tmp_path / "picture.png").write_bytes(Path(files[-1]).read_bytes())
    run(lines, shop, tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip() == asked.text
    assert (tmp_path / "ask.png").read_bytes() == Path(files[0]).read_bytes()


def test_examples_know_what_is_in_them(shop: Shop) -> None:
    example = shop.examples.all[1]
    assert shop.examples.find(Picture(example.picture.image.copy(), "renamed.png")) is example
    assert shop.examples.find(Picture(Image.new("RGB", (336, 336)), example.picture.name)) is None
    found = shop.examples.mentions(example.picture, "Two chairs, a toilet and a zebra.")
    assert [(one.object, one.there) for one in found] == [("chair", True), ("toilet", True), ("zebra", False)]
    assert shop.examples.mentions(None, "a dog") == []
    assert "banana" in shop.examples.screen.boxes


def test_words_that_differ_are_found() -> None:
    answers = ["a dog and a cat", "a dog and a cow", "a dog"]
    marked = [[text[a:b] for a, b in spans] for text, spans in zip(answers, differing(answers), strict=True)]
    assert marked == [["cat"], ["cow"], []]
    assert differing(["A dog, a cat."]) == [[]]
    spans = differing(["a dog.", "A big red dog"])
    assert spans == [[], [(2, 9)]], "neighbours are marked together; capitals and punctuation do not count"
