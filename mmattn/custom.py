"""Every method inside plain transformers: `hf_model.generate(**inputs, custom_generate=...)`.

Transformers hands over token ids and preprocessed pictures. From them this module makes what the engine decodes: it
takes the user's words out of the prompt, checks that the processor's template makes the same tokens of them again, and
returns what transformers returns.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from mmattn.adapters import Adapter, Pixels, Prepared, Sample, adapter_for
from mmattn.adapters.base import content_key
from mmattn.adapters.text import MARK, Tokenised
from mmattn.decoding.emphasis import joined, marked, steers
from mmattn.decoding.engine import Generation, run
from mmattn.decoding.method import Method
from mmattn.decoding.registry import resolve
from mmattn.decoding.requests import Options, requests_of
from mmattn.decoding.sampling import Sampling, sample_keys
from mmattn.errors import MmattnError
from mmattn.vlm import require_pictures, samples_of

# What the engine does itself; anything else that transformers would ask is refused.
_PROCESSORS = {"TemperatureLogitsWarper": "temperature", "TopKLogitsWarper": "top_k", "TopPLogitsWarper": "top_p"}
_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")
_RAW = ("input_ids", "attention_mask", "pixel_values", "qformer_input_ids", "qformer_attention_mask")
_INSTEAD = "Use mmattn.wrap(model, processor).generate(...), or leave it out."


def custom_generate(
    method: str | Method,
    processor: Any,
    *,
    images: Any = None,
    emphasise: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> CustomGenerate:
    """For `hf_model.generate(**inputs, custom_generate=...)`: plain transformers decodes by a method.

    `inputs` are the processor's, of one or several prompts. Greedy decoding and sampling (temperature, top-k, top-p)
    work; beams and further logits processors are refused. InstructBLIP's `generate` passes on nothing but embeddings:
    there, and wherever `generate` is called by somebody else, take `mmattn.edit(model, method, processor=processor)`.

    Args:
        method: as for `VLM.generate`. Methods that change words need prompts of one turn in the processor's own chat
            template.
        processor: the model's.
        images: the pictures from which `inputs` were made, as for `VLM.generate`; with them the random draws are the
            same as there, and boxes can be emphasised.
        emphasise: as for `VLM.generate`.
        seed: of the random draws, which else depend on what the processor made of a sample.
        batch_size: rows of `inputs` at once; all by default.

    Raises:
        MmattnError: unknown method, or one that changes pictures before they are preprocessed.
    """
    steered, what = joined(resolve(method), emphasise)
    return CustomGenerate(steered, processor, images, what, seed, batch_size)


@dataclass(frozen=True)
class CustomGenerate:
    """See `custom_generate`.

    Attributes:
        what: is emphasised.
        inputs: what the user passed to `generate`, where transformers does not hand it over.
        owner: the model of these inputs.
    """

    method: Method
    processor: Any
    images: Any = None
    what: Any = None
    seed: int = 0
    batch_size: int | None = None
    inputs: Mapping[str, Any] | None = None
    owner: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        if self.method.repaints:
            raise MmattnError(
                f"{self.method.label} changes pictures before they are preprocessed",
                "Use mmattn.prompting.attention_prompt() on them first, or mmattn.wrap(model, processor).generate().",
            )

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,  # noqa: ARG002 - taken, so that nothing is encoded beforehand
        **given: Any,
    ) -> torch.Tensor:
        """What transformers calls in place of its own loop: ids (B, T) with the answers behind."""
        if self.inputs is None:
            if given.get("inputs_embeds") is not None or given.get("encoder_outputs") is not None:
                raise MmattnError(
                    f"{type(model).__name__} got embeddings, which tell neither pictures nor words",
                    "With InstructBLIP use: with mmattn.edit(model, method, processor=processor): model.generate(...).",
                )
            if given.get("pixel_values_videos") is not None or given.get("video_grid_thw") is not None:
                raise MmattnError("Videos are not supported", "Pass pictures.")
        received: Mapping[str, Any] = self.inputs or {
            "input_ids": input_ids, "attention_mask": given.get("attention_mask"), "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw, "image_sizes": image_sizes,
        }  # fmt: skip
        options = self._options(generation_config, logits_processor, stopping_criteria)
        adapter = adapter_for(self.owner or model, self.processor)
        reader = _Reader(adapter, self.method)
        samples = self._marked(reader.samples(received, self.images))
        require_pictures(self.method, samples)
        longest = generation_config.max_length - input_ids.shape[1]
        names = sample_keys(samples)
        requests = requests_of(adapter, self.method, samples, samples, names, longest, reader.prepare)
        answers = run(adapter, requests, options, self.batch_size or len(requests))
        pad = generation_config._pad_token_tensor
        return _behind(input_ids, answers, adapter.pad_token_id if pad is None else int(pad))

    def _marked(self, samples: list[Sample]) -> list[Sample]:
        done = marked(samples, self.what, single=False)
        if self.images is None and any(one.box is not None for sample in done for one in sample.marks):
            raise MmattnError("Preprocessed pictures do not tell where a box is", "Pass images=... beside it.")
        return done

    def _options(self, config: Any, processors: Any, criteria: Any) -> Options:
        """Sampling and stop tokens, from what transformers has made of its arguments."""
        if config.num_beams > 1 or config.num_return_sequences > 1:
            raise MmattnError("One answer to each prompt, without beams, is all that works here", _INSTEAD)
        if config.return_dict_in_generate:
            raise MmattnError("return_dict_in_generate is not supported here", _INSTEAD)
        kinds = [type(one).__name__ for one in (*processors, *criteria)]
        strange = [kind for kind in kinds if kind not in (*_PROCESSORS, *_CRITERIA)]
        if strange:
            raise MmattnError(f"{', '.join(strange)} cannot act beside {self.method.label}", _INSTEAD)
        drawn = {_PROCESSORS[type(one).__name__]: getattr(one, _PROCESSORS[type(one).__name__]) for one in processors}
        stops = [one.eos_token_id.tolist() for one in criteria if type(one).__name__ == "EosTokenCriteria"]
        sampling = Sampling(True, **drawn) if config.do_sample else Sampling()
        return Options(self.method, sampling, frozenset(stop for some in stops for stop in some), self.seed)


@contextmanager
def decoding(model: PreTrainedModel, loop: CustomGenerate) -> Iterator[None]:
    """Within the context, `model.generate`, called in this thread by anybody, decodes by `loop`."""
    original, mine = model.generate, threading.get_ident()
    before = vars(model).get("generate")

    def generate(*args: Any, **named: Any) -> Any:
        if threading.get_ident() != mine:
            return original(*args, **named)
        if named.get("custom_generate") is not None or named.get("streamer") is not None:
            raise MmattnError("custom_generate and streamer cannot act beside a method", _INSTEAD)
        # A family that overrides `generate` hands nothing but embeddings over.
        given = inspect.signature(original).bind_partial(*args, **named).arguments
        raw = {name: one for name, one in given.items() if name in _RAW} if "qformer_input_ids" in given else None
        return original(*args, **named, custom_generate=replace(loop, inputs=raw, owner=model))

    model.generate = generate
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


class _Reader:
    """Samples out of token ids and preprocessed pictures, and back."""

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self._adapter, self._method = adapter, method
        self._needs_words = _needs_words(method)
        self._pixels: dict[int, Pixels] = {}  # by the picture's identity
        self._as_given: dict[int, Prepared] = {}  # by the sample's identity, where its words are not known

    def samples(self, inputs: Mapping[str, Any], images: Any) -> list[Sample]:
        """One per row; without the original pictures, with stand-ins for them."""
        mask = inputs.get("attention_mask")
        rows = inputs["input_ids"].cpu()
        rows = [row if mask is None else row[mask[index].bool().cpu()] for index, row in enumerate(rows)]
        pixels = iter(self._adapter.received(inputs) if inputs.get("pixel_values") is not None else ())
        shown = None if images is None else samples_of(images, [" "] * len(rows))
        found = []
        for index, row in enumerate(rows):
            mine = tuple(self._pictures(row, pixels))
            pictures = tuple(map(_stand_in, mine)) if shown is None else shown[index].images
            if len(pictures) != len(mine):
                raise MmattnError(f"Prompt {index} shows {len(mine)} pictures, not {len(pictures)}", "Give those.")
            if shown is not None:
                mine = tuple(replace(one, size=picture.size) for one, picture in zip(mine, pictures, strict=True))
            self._pixels |= {id(picture): one for picture, one in zip(pictures, mine, strict=True)}
            found.append(self._sample(row, pictures, mine))
        return found

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """In tokens; pictures that are not those of the prompt cannot be made."""
        done = []
        for sample in samples:
            if id(sample) in self._as_given:
                done.append(self._as_given[id(sample)])
                continue
            if any(id(picture) not in self._pixels for picture in sample.images):
                raise MmattnError(f"{self._method.label} shows other pictures", _INSTEAD)
            done.append(self._adapter.prepare_one(sample, tuple(self._pixels[id(one)] for one in sample.images)))
        return done

    def _pictures(self, row: torch.Tensor, pixels: Any) -> list[Pixels]:
        """The next pictures, as many as the row's image tokens need."""
        needed = int((row == self._adapter.image_token_id).sum())
        mine: list[Pixels] = []
        while needed > 0:
            one = next(pixels, None)
            if one is None:
                raise MmattnError("There are more image tokens than pictures", "Pass the processor's whole output.")
            mine.append(one)
            needed -= self._adapter.views(one)[0]
        return mine

    def _sample(self, row: torch.Tensor, images: tuple[Image.Image, ...], pixels: tuple[Pixels, ...]) -> Sample:
        ids = self._adapter.completed(row.tolist())
        for words in _words(self._adapter, row.tolist(), [self._adapter.views(one)[0] for one in pixels]):
            sample = Sample(images, words)
            prepared = self._adapter.prepare_one(sample, pixels)
            asked = all(
                torch.equal(one.words, given.words)
                for one, given in zip(prepared.pixels, pixels, strict=True)
                if one.words is not None and given.words is not None
            )
            if prepared.ids.tolist() == ids and asked:
                return sample
        if self._needs_words:
            raise MmattnError(
                f"{self._method.label} needs the user's words, and they cannot be told from this prompt",
                "Write prompts of one turn in the processor's own chat template.",
            )
        sample = Sample(images, f"{ids}")  # names its random streams
        read = Tokenised(ids, ((0, 0),) * len(ids), len(ids), "", (0, 0))
        self._as_given[id(sample)] = self._adapter.laid_out(read, pixels)
        return sample


def _needs_words(method: Method) -> bool:
    """Whether `method` changes or steers to words."""
    changes = any(one.sample is not None for one in method.branches()) or bool(method.probes())
    return changes or steers(method, "instruction") or steers(method, "mark")


def _words(adapter: Adapter, row: list[int], counts: list[int]) -> Iterator[str]:
    """What the user may have said in a prompt with pictures of `counts` image tokens."""
    tokenizer = adapter.tokenizer
    names = [*tokenizer.all_special_tokens, tokenizer.convert_ids_to_tokens(adapter.image_token_id)]
    before, after = adapter.tokenised(Sample((), MARK), counts).text.split(MARK)
    for name in names:
        before, after = before.replace(name, ""), after.replace(name, "")
    text = tokenizer.decode([one for one in row if one != adapter.image_token_id], skip_special_tokens=True)
    first, last = (r"\s*".join(map(re.escape, part.split())) for part in (before, after))
    found = re.search(f"{first}(.*){last}", text, flags=re.DOTALL)
    if found:
        yield from (one for one in dict.fromkeys([found[1], found[1].strip()]) if one.strip())


def _stand_in(pixels: Pixels) -> Image.Image:
    """A picture that is like no other but those of the same pixels."""
    return Image.frombytes("L", (8, 4), sha256(content_key(pixels.values).encode()).digest())


def _behind(ids: torch.Tensor, answers: Sequence[Generation], pad: int) -> torch.Tensor:
    """`ids` (B, T) with each answer and its stop token behind, filled up with `pad`."""
    rows = [[*one.token_ids, *(() if one.stop_token is None else (one.stop_token,))] for one in answers]
    width = max(map(len, rows))
    filled = [row + [pad] * (width - len(row)) for row in rows]
    return torch.cat([ids, torch.tensor(filled, dtype=ids.dtype, device=ids.device).view(len(ids), width)], dim=1)
