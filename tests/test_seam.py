"""V-SEAM: heads scaled and ablated in unmodified models by hooks, and the command that measures them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import mmattn
from mmattn.decoding import VSEAM
from mmattn.decoding.ablation import Asked, head_falls, measure_heads
from mmattn.errors import MmattnError
from tests.stock import comparable, inputs_of, new_tokens
from tests.test_cli import run
from tests.test_contrasts import Stock, log_softmax
from tests.test_families import PROMPTS
from tests.test_methods import HEADS
from tests.test_vhr import _Scaled
from tests.tiny import FAMILIES, TEMPLATE, tiny_llava

Array = NDArray[np.float64]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return comparable(request.param)


@pytest.mark.parametrize(("strength", "epsilon"), [(1.0, 0.0), (0.6, 0.5)])
def test_tokens_follow_the_equation(family: mmattn.VLM, pictures: list[Any], strength: float, epsilon: float) -> None:
    deltas = np.array(json.loads(HEADS.read_text())["scores"])
    scales = np.where(np.abs(deltas) < epsilon, 1.0, np.clip(1 + strength * deltas, 0, 2))
    assert (scales == 0).any() == (strength == 1)
    factors = dict(enumerate(scales))
    method = VSEAM(strength, epsilon, str(HEADS))
    got = family.generate(pictures[:2], PROMPTS[:2], method=method, max_new_tokens=3, stop_token_ids=[])
    for one, picture, prompt in zip(got, pictures[:2], PROMPTS[:2], strict=True):
        stock = Stock(family, picture, prompt)
        for step, token in enumerate(one.token_ids):
            with _Scaled(family, factors):
                scores = stock(list(one.token_ids[:step]))
            assert scores[token] >= scores.max() - 1e-4
    assert got != family.generate(pictures[:2], PROMPTS[:2], max_new_tokens=3, stop_token_ids=[])


class _Ablated:
    """One head of one layer gives something else."""

    def __init__(self, vlm: mmattn.VLM, layer: int, head: int, ablation: str) -> None:
        attention = vlm.adapter.attention_layers[layer]
        self._head, self._ablation = head, ablation
        module: Any = attention.o if hasattr(attention, "o") else attention.o_proj
        self._handle = module.register_forward_pre_hook(self._hook)

    def _hook(self, _module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        heads = given[0].unflatten(-1, (4, -1)).clone()
        others = [one for one in range(4) if one != self._head]
        mean = sum(heads[..., one, :] for one in others) / 3
        heads[..., self._head, :] = mean if self._ablation == "mean" else 0
        return (heads.flatten(-2),)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_scores_are_falls_of_the_right_tokens_probability(
    family: mmattn.VLM, pictures: list[Any], ablation: Any
) -> None:
    asked = [Asked(pictures[0], PROMPTS[0], "Yes"), Asked(pictures[2], PROMPTS[2], 77)]
    got = measure_heads(family, asked, ablation=ablation, batch_size=5)
    expected = np.zeros((3, 4))
    for one in asked:
        stock = Stock(family, one.image, one.prompt)
        space = family.processor.tokenizer(" ", add_special_tokens=False)["input_ids"][0]
        token = one.answer if isinstance(one.answer, int) else space  # with which the answer begins
        plain = np.exp(log_softmax(stock([])))[token]
        for layer in range(3):
            for head in range(4):
                with _Ablated(family, layer, head, ablation):
                    expected[layer, head] += (plain - np.exp(log_softmax(stock([])))[token]) / len(asked)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-4


def test_an_edit_inside_plain_generate(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], PROMPTS[:1])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    with mmattn.edit(vlm.model, VSEAM(scores=str(HEADS))):
        edited = new_tokens(vlm, inputs, **settings)
    ours = vlm.generate(
        [pictures[0]], PROMPTS[:1], method=VSEAM(scores=str(HEADS)), max_new_tokens=5, stop_token_ids=[1]
    )
    assert edited[0] == list(ours[0].token_ids)


def test_the_file_is_named_in_results_and_may_not_change(tmp_path: Path, vlm: mmattn.VLM) -> None:
    path = tmp_path / "heads.json"
    path.write_bytes(HEADS.read_bytes())
    method = VSEAM(scores=str(path))
    assert len(method.settings()["digest"]) == 12
    assert VSEAM(scores=str(path), digest=method.digest) == method
    assert method.edits() == VSEAM(scores=str(HEADS)).edits()
    path.write_text(json.dumps({"scores": [[0.5] * 4] * 3}))
    changed = VSEAM(scores=str(path))
    assert changed != method  # a captured step of the old scores does not serve the new ones
    with pytest.raises(MmattnError, match="has the digest"):
        VSEAM(scores=str(path), digest=method.digest)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "holds no head scores"),
        ('{"scores": 3}', "holds no head scores"),
        ('{"scores": [["a"]]}', "holds no head scores"),
        ('{"scores": [[1, 2], [1]]}', "no table of layers and heads"),
        ('{"scores": [[1, 2, 3, 4]]}', "a model with 1 layers, this one has 3"),
        ('{"scores": [[1], [1], [1]]}', "a model with 1 heads, this one has 4"),
        (None, "Cannot read the head scores"),
    ],
)
def test_unusable_files_are_told(
    tmp_path: Path, vlm: mmattn.VLM, pictures: list[Any], content: str | None, words: str
) -> None:
    path = tmp_path / "heads.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MmattnError, match=words):
        vlm.generate(pictures[0], "q", method=f"v-seam(scores={str(path)!r})", max_new_tokens=1)


def test_scores_are_needed(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match=r"needs scores of the heads.*mmattn heads seam"):
        vlm.generate(pictures[0], "q", method="v-seam", max_new_tokens=1)
    with pytest.raises(MmattnError, match="nothing to measure"):
        measure_heads(vlm, [])
    with pytest.raises(MmattnError, match="Unknown ablation"):
        list(head_falls(vlm, [Asked(pictures[0], "q", "Yes")], ablation="some"))  # type: ignore[arg-type]
    with pytest.raises(MmattnError, match="is empty"):
        measure_heads(vlm, [Asked(pictures[0], "q", "")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a picture with three kinds of objects of five."""
    model, processor = tiny_llava(template=TEMPLATE.replace("ASSISTANT:", "ASSISTANT:\n"))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / "0.png")
    names = ["dog", "cat", "bus", "cup", "kite", "book"]
    instances = {
        "images": [{"id": 1, "file_name": "0.png", "width": 80, "height": 60}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": number, "bbox": [1, 1, 9, 9]} for number in range(3)
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def test_the_command_writes_scores_and_goes_on_after_a_stop(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    out = folder / "heads.json"
    words = [
        "heads", "seam", "--model", folder / "model", "--annotations", folder / "instances.json", "--images", folder,
        "--out", out, "--device", "cpu",
    ]  # fmt: skip
    code, told, error = run(capsys, monkeypatch, *words)
    assert (code, error) == (0, "")
    assert f"As a method: v-seam(scores={str(out)!r})" in told
    whole = json.loads(out.read_text())
    assert whole["questions"] == 6
    assert np.array(whole["scores"]).shape == (3, 4)
    out.unlink()
    seen = []

    def torn(*given: Any, **named: Any) -> Any:
        for fall in head_falls(*given, **named):
            seen.append(fall)
            yield fall
            if len(seen) == 4:
                raise RuntimeError("a stop")

    with monkeypatch.context() as patch:
        patch.setattr("mmattn.decoding.ablation.head_falls", torn)
        assert run(capsys, patch, *words)[0] == 1
    part = folder / "heads.json.part"
    assert len(part.read_text().splitlines()) == 5
    part.write_text(part.read_text() + "[[0.1, 0.")  # a kill while it was writing
    assert "another measurement" in run(capsys, monkeypatch, *words, "--ablation", "zero")[2]
    code, told, _ = run(capsys, monkeypatch, *words, "--json")
    assert json.loads(told)["scores"] == whole["scores"]
    assert json.loads(out.read_text()) == whole
    assert not part.exists()
    assert run(capsys, monkeypatch, *words[:-4], "--annotations", "x")[0] == 2
