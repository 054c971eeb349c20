"""scenes-llava as it is shipped: small, ordinary, and it really sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import mmattn
from mmattn.scenes import SceneSet, dataset, model_path
from mmattn.scenes.catalog import article


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Pictures of the tuning split: the val set stays unseen by everything but reports."""
    return dataset("tune", root=tmp_path_factory.mktemp("tune"), count=30)


@pytest.fixture(scope="module")
def model() -> mmattn.VLM:
    return mmattn.load("scenes-llava", device="cpu")


def _objects(scenes: SceneSet) -> list[tuple[Path, dict[str, list[list[float]]]]]:
    data = json.loads(scenes.instances.read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    boxes: dict[int, dict[str, list[list[float]]]] = {one["id"]: {} for one in data["images"]}
    for one in data["annotations"]:
        boxes[one["image_id"]].setdefault(names[one["category_id"]], []).append(one["bbox"])
    return [(scenes.images / one["file_name"], boxes[one["id"]]) for one in data["images"]]


def test_size_and_layout() -> None:
    folder = model_path()
    assert (folder / "model.safetensors").stat().st_size < 18_000_000
    assert not list(folder.glob("*.bin"))
    assert (folder / "README.md").is_file()
    weights = LlavaForConditionalGeneration.from_pretrained(folder)
    assert sum(one.numel() for one in weights.parameters()) < 9_000_000


def test_it_answers_through_plain_transformers(tune: SceneSet, model: mmattn.VLM) -> None:
    """The ordinary classes, the ordinary chat template, the same words."""
    plain = LlavaForConditionalGeneration.from_pretrained(model_path())
    processor = AutoProcessor.from_pretrained(model_path())
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text == "USER: <image>\nDescribe the image. ASSISTANT:"
    path = _objects(tune)[0][0]
    with Image.open(path) as picture:
        inputs = processor(images=picture.convert("RGB"), text=text, return_tensors="pt")
    ids = plain.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert model.generate(path, "Describe the image.", max_new_tokens=64)[0].text == expected
    assert expected.startswith("The image shows")


def test_training_prompts_equal_the_processors(model: mmattn.VLM) -> None:
    from training.llava import STYLE

    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it?"}]}]
    assert model.processor.apply_chat_template(turn, add_generation_prompt=True) == STYLE.prompt("Is it?")


def test_it_sees(tune: SceneSet, model: mmattn.VLM) -> None:
    """Far from chance on what is there and what is not; the exact figures are in the model card."""
    objects = _objects(tune)
    everything = sorted({name for _, boxes in objects for name in boxes})
    images, questions, truth = [], [], []
    for index, (path, boxes) in enumerate(objects):
        absent = [name for name in everything if name not in boxes]
        for name in (next(iter(boxes)), absent[index % len(absent)]):
            images.append(path)
            questions.append(f"Is there {article(name)} in the image?")
            truth.append("Yes" if name in boxes else "No")
    answers = [one.text for one in model.generate(images, questions, max_new_tokens=3)]
    assert sum(a == b for a, b in zip(answers, truth, strict=True)) / len(truth) >= 0.95


def test_its_localisation_head_points_at_the_object(tune: SceneSet, model: mmattn.VLM) -> None:
    assert model.localisation_head is not None
    layer, head = model.localisation_head
    hits = []
    for path, boxes in _objects(tune):
        name = next(iter(boxes))
        x, y = model.attend(path, f"Is there {article(name)} in the image?").peak(layers=layer, heads=head)
        hits.append(any(left <= x < left + w and top <= y < top + h for left, top, w, h in boxes[name]))
    assert sum(hits) / len(hits) >= 0.8


def test_any_text_can_be_asked(tune: SceneSet, model: mmattn.VLM) -> None:
    path = _objects(tune)[0][0]
    answers = model.generate([path, None, path], ["¿Qué 看 🙂?", "hello", "x" * 300], max_new_tokens=8, method="greedy")
    assert len(answers) == 3


@pytest.mark.parametrize("side", [(30, 900), (900, 30), (5, 5)])
def test_any_shape_can_be_shown(side: tuple[int, int], model: mmattn.VLM) -> None:
    picture: Any = Image.new("RGB", side, "teal")
    read = model.attend(picture, "Is there a dog?")
    assert read.heatmap().shape == (side[1], side[0])
