"""The model "mmattn" of lmms-eval: any model that mmattn loads, under any of its methods, in batches.

lmms_eval --model mmattn --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=iava --tasks pope --batch_size 32
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from mmattn.api import load
from mmattn.decoding import resolve
from mmattn.errors import MmattnError
from mmattn.eval.parts import own_device

LONGEST = 1024  # where a task names no length, as in lmms-eval's own models
CHUNK = 8  # batches whose pictures are held at once


class Mmattn(lmms):  # type: ignore[misc]
    """Answers by generation; log-likelihoods and dialogues of several rounds are refused.

    Args:
        pretrained: as in `mmattn.load`.
        method: as in `generate`; quote it where it has commas: method="vcd(alpha=0.5, beta=0.1)".
        device, dtype, device_map, trust_remote_code: as in `mmattn.load`.
        batch_size: samples at once.
        seed: of random draws.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "scenes-llava",
        method: str = "greedy",
        device: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 16,
        seed: int = 0,
        max_batch_size: Any = None,  # noqa: ARG002 - the program passes it to every model
    ) -> None:
        super().__init__()
        self.method = resolve(str(method).strip("'\""))
        options: dict[str, Any] = {"device_map": device_map} if device_map else {}
        place = device if device_map else own_device(device)
        self.vlm = load(pretrained, device=place, dtype=dtype, trust_remote_code=bool(trust_remote_code), **options)
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def device(self) -> torch.device:
        """Where the program gathers its counts."""
        return self.vlm.adapter.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer per request, in order; those with the same settings go through the engine together."""
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        answers: dict[int, str] = {}
        size = CHUNK * self.batch_size
        with tqdm(total=len(requests), disable=self.rank != 0, desc="mmattn") as bar:
            for members in alike.values():
                for start in range(0, len(members), size):
                    chosen = members[start : start + size]
                    texts = self._answer([requests[index].args for index in chosen])
                    answers.update(zip(chosen, texts, strict=True))
                    bar.update(len(chosen))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args[:2], answers[index])
        return [answers[index] for index in range(len(requests))]

    def _answer(self, given: Sequence[tuple[Any, ...]]) -> list[str]:
        settings: Mapping[str, Any] = given[0][1]
        if int(settings.get("num_beams") or 1) > 1:
            raise MmattnError("mmattn decodes without beams", "Run the task with --gen_kwargs num_beams=1.")
        temperature = float(settings.get("temperature") or 0)
        sampling: dict[str, Any] = {}
        if temperature > 0 and settings.get("do_sample") is not False:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": float(settings.get("top_p") or 1)}
        pictures = [_pictures(show(self.task_dict[task][split][doc])) for _, _, show, doc, task, split in given]
        answers = self.vlm.generate(
            pictures,
            [str(words).replace("<image>", "").strip() for words, *_ in given],
            method=self.method,
            max_new_tokens=int(settings.get("max_new_tokens") or LONGEST),
            batch_size=self.batch_size,
            seed=self.seed,
            **sampling,
        )
        until = settings.get("until") or []
        return [_cut(answer.text, [until] if isinstance(until, str) else until) for answer in answers]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # noqa: ARG002
        """Refused: most methods change how an answer is generated, not how likely a given one is."""
        raise MmattnError("mmattn gives lmms-eval no log-likelihoods", "Use a task of the type generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:  # noqa: ARG002
        """Refused."""
        raise MmattnError("mmattn answers lmms-eval in one round", "Use a task of the type generate_until.")


def _pictures(shown: Any) -> list[Image.Image] | None:
    """What a task shows with one question."""
    found = list(shown or [])
    if not all(isinstance(one, Image.Image) for one in found):
        raise MmattnError("mmattn takes pictures, no video or sound", "Use a task about pictures.")
    return found or None


def _cut(text: str, until: Sequence[str]) -> str:
    """`text` before the first of `until` in it."""
    for end in until:
        text = text.split(end)[0] if end else text
    return text.strip()
