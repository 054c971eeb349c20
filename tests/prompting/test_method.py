"""The method "api": what the model sees is the prompted picture, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding import AttentionPrompt, resolve
from mmattn.decoding.sampling import sample_keys
from mmattn.errors import MmattnError
from mmattn.prompting import ClipScorer, ContrastScorer, LvlmScorer, Recipe, Scorer, attention_prompt

PROMPTS = ["what?", "is there a dog?", "describe", "q", "go on"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "stop_token_ids": []}


def _tokens(answers: Any) -> list[Any]:
    return [one.token_ids for one in answers]


@pytest.mark.parametrize("scorer", ["lvlm", "contrast", "clip"])
def test_answers_are_those_of_prompted_pictures(
    vlm: mmattn.VLM, pictures: list[Any], clip_folder: Path, scorer: str
) -> None:
    method = AttentionPrompt(scorer=scorer, clip=str(clip_folder), layer=1, enhance=3.0, grey=100)
    kinds: dict[str, Scorer] = {
        "lvlm": LvlmScorer(vlm, [1]), "contrast": ContrastScorer(vlm, [1]),
        "clip": ClipScorer.load(str(clip_folder), layer=1, device="cpu"),
    }  # fmt: skip
    recipe = Recipe(enhance=3.0, grey=100)
    dimmed = [attention_prompt(one, text, kinds[scorer], recipe) for one, text in zip(pictures, PROMPTS, strict=True)]
    got = vlm.generate(pictures, PROMPTS, method=method, batch_size=2, **SETTINGS)
    assert _tokens(got) == _tokens(vlm.generate(dimmed, PROMPTS, **SETTINGS))
    assert _tokens(got) != _tokens(vlm.generate(pictures, PROMPTS, **SETTINGS))


def test_it_goes_with_other_methods(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    dimmed = [attention_prompt(one, text, LvlmScorer(vlm)) for one, text in zip(pictures, PROMPTS, strict=True)]
    for other in ("boost(strength=4)", "m3id(rate=0.9, alpha=1.0)"):
        joined = vlm.generate(pictures, PROMPTS, method=f"api+{other}", **SETTINGS)
        assert _tokens(joined) == _tokens(vlm.generate(dimmed, PROMPTS, method=other, **SETTINGS))


def test_noise_hangs_on_the_original_picture(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """However the last bits of a dimmed picture fall out."""
    both = {"method": "api+vcd(alpha=3, beta=0)", **SETTINGS}
    joined = vlm.generate(pictures, PROMPTS, **both)
    assert joined == vlm.generate(pictures, PROMPTS, batch_size=1, **both)
    assert joined != vlm.generate(pictures, PROMPTS, method="vcd(alpha=3, beta=0)", **SETTINGS)


def test_random_draws_hang_on_the_original_picture(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings = {**SETTINGS, "do_sample": True, "temperature": 2.0}
    dimmed = [attention_prompt(one, text, LvlmScorer(vlm)) for one, text in zip(pictures, PROMPTS, strict=True)]
    samples = [Sample((one,), text) for one, text in zip(pictures, PROMPTS, strict=True)]
    drawn = vlm.generate(pictures, PROMPTS, method="api", batch_size=1, **settings)
    keys = [key for key, _ in sample_keys(samples)]
    assert _tokens(drawn) == _tokens(vlm.generate(dimmed, PROMPTS, keys=keys, batch_size=1, **settings))
    assert _tokens(drawn) != _tokens(vlm.generate(dimmed, PROMPTS, batch_size=1, **settings))


def test_neutral_strength_is_the_plain_model(
    vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LvlmScorer, "score", None)  # nobody is asked
    plain = vlm.generate(pictures, PROMPTS, **SETTINGS)
    assert vlm.generate(pictures, PROMPTS, method="api(strength=0)", **SETTINGS) == plain


def test_text_alone_and_several_pictures(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    assert vlm.generate(None, "q", method="api", **SETTINGS) == vlm.generate(None, "q", **SETTINGS)
    mixed = vlm.generate([pictures[:2], None], ["what?", "q"], method="api", **SETTINGS)
    scored = LvlmScorer(vlm).score([pictures[:2]], ["what?"])[0]
    recipe = Recipe()
    dimmed = [recipe.overlay(one, recipe.mask(each)) for one, each in zip(pictures[:2], scored, strict=True)]
    assert _tokens(mixed) == _tokens(vlm.generate([dimmed, None], ["what?", "q"], **SETTINGS))


def test_attend_reads_the_prompted_picture(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    dimmed = attention_prompt(pictures[1], "what?", LvlmScorer(vlm))
    got = vlm.attend(pictures[1], "what?", "yes", method="api")
    np.testing.assert_array_equal(got.weights, vlm.attend(dimmed, "what?", "yes").weights)
    assert got.heatmap().shape == (pictures[1].height, pictures[1].width)


def test_settings_by_name() -> None:
    method = resolve("api(scorer='clip', clip='ViT-B-32', layer=3, grey=128, kernel=5)")
    assert isinstance(method, AttentionPrompt)
    assert method.recipe() == Recipe(grey=128, kernel=5)
    assert method.label == "api(scorer='clip', clip='ViT-B-32', layer=3, kernel=5, grey=128)"
    assert resolve(method.label) == method
    assert method.settings()["scorer"] == "clip"
    assert AttentionPrompt().recipe() == Recipe()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("api(scorer='clop')", "Did you mean clip"),
        ("api(scorer=3)", "word in quotes"),
        ("api(layer='3')", "must be a number"),
        ("api(kernel=2)", "odd"),
        ("api(strength=3)", "strength"),
    ],
)
def test_malformed_settings(text: str, word: str) -> None:
    with pytest.raises(MmattnError, match=word):
        resolve(text)


def test_a_plain_forward_cannot_be_prompted(vlm: mmattn.VLM) -> None:
    for name in ("api", "boost+api"):
        with pytest.raises(MmattnError, match="more than an edit"), mmattn.edit(vlm.model, name):
            pass
    with mmattn.edit(vlm.model, "boost", "boost(strength=3)+boost"):
        pass


def test_layers_that_the_model_does_not_have(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match="layer"):
        vlm.generate(pictures[0], "q", method="api(layer=7)")
