"""The contract that every method keeps; a new one gets these tests by standing in the registry and in `STRONG` here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mmattn
from mmattn.attention import Site
from mmattn.decoding import Method, Step, methods, resolve
from mmattn.decoding.registry import METHODS
from mmattn.errors import MmattnError
from tests.test_families import PROMPTS
from tests.test_generate import decoder_calls
from tests.tiny import FAMILIES

HEADS = Path(__file__).parent / "data" / "heads.json"
# Settings that change what tiny random models say, and those at which each method is the plain model.
STRONG = {
    "vcd": "vcd(alpha=3, beta=0.01, noise_step=999)",
    "boost": "boost(strength=5)",
    "var": "var(tau=1.2, rho=1, summ=0, p=0, start=0, spared=0, dimensions='3 17 20')",
    "pai": "pai(alpha=3, gamma=3, beta=0.01, start=0)",
    "icd": "icd(alpha=3, beta=0.01)",
    "m3id": "m3id(rate=0.9, alpha=1)",
    "iava": "iava(alpha=5, beta=0.01, lam=0.5)",
    "rbd": "rbd(alpha_t=3, alpha_v=3, beta=0.01, noise_step=999, share=0.2)",
    "vhr": "vhr(alpha=4)",
    "avisc": "avisc(alpha=5, beta=0.01, lam=0)",
    "instaboost": "instaboost(strength=30)",
    "pasta": "pasta(heads='0:1 1:0 1:2 2:3')",
    "spotlight": "spotlight(target=1)",
    "split-softmax": "split-softmax(power=0.1)",
    "dola": "dola(layers='0 1 2', beta=0.001)",
    "deco": "deco(alpha=6, layers='0-2', top_p=1, norm=1)",
    "paint": "paint(local=4, summary=3, gamma=3, beta=0.01, start=0, modulation=1)",
    "v-seam": f"v-seam(scores={str(HEADS)!r})",
    "sid": "sid(alpha=5, beta=0.01, start=1, share=0.2)",
    "act": "act(beta=0, threshold=0.04, start=0, spared=0)",
    "cmai": "cmai(share=0.9, start=0)",
    "api": "api(scorer='contrast', grey=0, kernel=1)",
}
NEUTRAL = {
    "boost": ["boost(strength=1)"],
    "var": ["var(p=1)"],
    "pai": ["pai(alpha=0, gamma=1)"],
    "icd": ["icd(alpha=0)"],
    "m3id": ["m3id(rate=0)", "m3id(alpha=0)"],
    "iava": ["iava(alpha=0)"],
    "rbd": ["rbd(alpha_t=0, alpha_v=0)"],
    "vhr": ["vhr(alpha=1)"],
    "avisc": ["avisc(alpha=0)"],
    "instaboost": ["instaboost(strength=1)"],
    "pasta": ["pasta(alpha=1)"],
    "spotlight": ["spotlight(target=0)"],
    "split-softmax": ["split-softmax(power=1)"],
    "dola": ["dola(alpha=0)"],
    "deco": ["deco(alpha=0)"],
    "paint": ["paint(local=0, summary=0, gamma=1)"],
    "v-seam": ["v-seam(strength=0)"],
    "sid": ["sid(alpha=0)"],
    "act": ["act(beta=1)"],
    "cmai": ["cmai(share=0)", "cmai(factor=1)"],
    "api": ["api(strength=0)"],
}
# Methods that need a class token in the vision tower, and families that have none.
CLASS_TOKEN = {"paint"}
WITHOUT = {"qwen-vl", "llava-onevision"}


def refuses(family: mmattn.VLM, name: str) -> bool:
    return name in CLASS_TOKEN and family.adapter.family in WITHOUT


NAMES = [name for name in METHODS if name != "greedy"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.12))


def test_each_method_is_described() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    for one in methods():
        card = one.card
        assert all([card.summary, card.source, card.formula, card.extra_passes, card.defaults_from])
        assert len(resolve(one.name).branches()) + 1 == card.branches or not card.branches
        if one.name != "greedy":
            assert f"### {one.name}" in page
            assert resolve(one.name).label == one.name
            assert resolve(resolve(STRONG[one.name]).label) == resolve(STRONG[one.name])
            assert card.exact == ("Exact" in page.split(f"### {one.name}")[1].split("###")[0])


def test_the_list_tells_what_there_is_to_know() -> None:
    for one in methods():
        assert one.meanings.keys() == one.parameters.keys(), f"{one.name}: a hyper-parameter without a word on it"
        assert all(text[-1] in ".)" and "  " not in text for text in one.meanings.values())
        for preset in one.card.presets.values():
            assert resolve(preset).name == one.name
            assert resolve(preset) != resolve(one.name)
    listed = {one.name: one for one in methods()}
    assert listed["vcd"].meanings["alpha"] == "strength of the contrast; 0 leaves the scores as they are."
    assert {listed[name].kind for name in ("greedy", "boost", "vhr", "vcd", "api")} == {
        "plain", "edit", "picture", "rule",
    }  # fmt: skip
    assert [listed[name].plain_transformers for name in ("boost", "pai", "vhr", "api")] == [
        "mmattn.edit", "mmattn.custom_generate", "mmattn.custom_generate", "",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_strong_settings_change_the_answer_and_a_batch_is_its_samples(
    family: mmattn.VLM, pictures: list[Any], name: str
) -> None:
    several = [pictures[1], pictures[3]][: family.adapter.max_images]
    images = [pictures[0], several, pictures[2], pictures[4]]
    words, method = PROMPTS[:4], resolve(STRONG[name])
    if refuses(family, name):
        with pytest.raises(MmattnError, match="no class token"):
            family.generate(images, words, method=method, **SETTINGS)
        return
    together = family.generate(images, words, method=method, **SETTINGS)
    assert together == [
        family.generate([i], [p], method=method, **SETTINGS)[0] for i, p in zip(images, words, strict=True)
    ]
    assert together != family.generate(images, words, **SETTINGS)


@pytest.mark.parametrize("name", NAMES)
def test_one_decoder_call_per_step(vlm: mmattn.VLM, pictures: list[Any], name: str) -> None:
    method = resolve(STRONG[name])
    before = any(branch.hidden for branch in method.branches()) + 2 * (name == "api")
    with decoder_calls(vlm) as calls:
        vlm.generate(pictures[:3], PROMPTS[:3], method=method, **SETTINGS)
    assert len(calls) == SETTINGS["max_new_tokens"] + before


@pytest.mark.parametrize("text", [text for texts in NEUTRAL.values() for text in texts])
def test_neutral_strength_is_the_plain_model(vlm: mmattn.VLM, pictures: list[Any], text: str) -> None:
    method = resolve(text)
    assert (method.edits(), method.branches(), method.probes(), method.exits(3, False)) == ((), (), {}, None)
    logits = torch.randn(2, 1, 9)
    assert torch.equal(method.combine(Step(logits, torch.tensor(0))), logits[:, 0])
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 2.0, **SETTINGS}
    ours = vlm.generate(pictures, PROMPTS, method=method, **drawn)
    assert ours == vlm.generate(pictures, PROMPTS, **drawn)


@pytest.mark.parametrize("name", NAMES)
def test_words_alone(vlm: mmattn.VLM, name: str) -> None:
    """A method either takes a prompt without picture or says that it does not."""
    method = resolve(STRONG[name])
    if any(branch.pixels or branch.hidden for branch in method.branches()):
        with pytest.raises(MmattnError, match="needs a picture"):
            vlm.generate(None, ["what?"], method=method, **SETTINGS)
    else:
        assert len(vlm.generate(None, ["what?"], method=method, **SETTINGS)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_sampling_follows_the_seed(vlm: mmattn.VLM, pictures: list[Any], name: str) -> None:
    drawn: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "method": resolve(STRONG[name]), **SETTINGS}
    first = vlm.generate(pictures[:2], PROMPTS[:2], seed=3, **drawn)
    assert first == vlm.generate(pictures[:2], PROMPTS[:2], seed=3, **drawn)


def _decode_site(layer: int) -> Site:
    """As an edit meets it in a decode step: memory is filled."""
    image = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    memory = {"sinks": torch.zeros(2, 7, dtype=torch.bool), "factors": torch.ones(2, 1, 4, 1)}
    memory["prompt"] = memory["hidden"] = ~memory["sinks"]
    memory["local"] = memory["summary"] = memory["sinks"]
    memory["drawn"] = torch.zeros(2, 7, 4, dtype=torch.bool)
    return Site(layer, 3, image, image, None, memory)


@pytest.mark.parametrize("name", [name for name in NAMES if resolve(STRONG[name]).captured])
def test_a_step_needs_no_word_from_the_host(name: str) -> None:
    """Fake tensors have no values: work whose shape or course depends on them cannot pass. Nor may it ask for them."""
    method = resolve(STRONG[name])
    decoded = 1 + sum(branch.decoded for branch in method.branches())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor
        logits = fake(torch.randn(2, decoded, 11))
        early = fake(torch.randn(2, 3, 11)) if method.exits(3, tied=False) else None
        assert method.combine(Step(logits, fake(torch.tensor(3)), early)).shape == (2, 11)
        for edit, layer in [(edit, layer) for edit in method.edits() for layer in range(2) if edit.wants(layer, 3)]:
            site = _decode_site(layer)
            scores = fake(torch.randn(2, 4, 1, 9))
            assert edit.weights(edit.scores(scores, site).softmax(-1), site).shape == scores.shape
            assert edit.output(fake(torch.randn(2, 1, 4, 8)), site).shape == (2, 1, 4, 8)


@pytest.mark.parametrize("name", [name for name in NAMES if resolve(STRONG[name]).rules])
def test_an_edit_joins_any_rule(vlm: mmattn.VLM, pictures: list[Any], name: str) -> None:
    alone = resolve(STRONG[name])
    both = resolve(f"boost(strength=6)+{STRONG[name]}")
    assert both.label == f"boost(strength=6)+{alone.label}"
    assert vlm.generate(pictures, PROMPTS, method=both, **SETTINGS) != vlm.generate(
        pictures, PROMPTS, method=alone, **SETTINGS
    )
    with pytest.raises(MmattnError, match="both rewrite"):
        resolve(f"{STRONG[name]}+{STRONG[name]}")


def test_pure_edits_work_in_plain_transformers(vlm: mmattn.VLM) -> None:
    for name in NAMES:
        method = resolve(STRONG[name])
        if method.rules or method.branches() or method.repaints:
            with pytest.raises(MmattnError, match="more than an edit"), mmattn.edit(vlm.model, method):
                pass
        else:
            with mmattn.edit(vlm.model, method):
                pass
    with mmattn.edit(vlm.model, "pai(gamma=1)"):
        pass
    assert isinstance(resolve("greedy"), Method)
