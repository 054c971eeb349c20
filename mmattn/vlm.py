"""`VLM`: a loaded vision-language model, and the calls users make on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

from PIL import Image
from transformers import PreTrainedModel

from mmattn.adapters import Sample, adapter_for
from mmattn.checks import whole
from mmattn.decoding.emphasis import joined, marked
from mmattn.decoding.engine import Generation, run
from mmattn.decoding.method import Method
from mmattn.decoding.recorder import Capture
from mmattn.decoding.registry import resolve
from mmattn.decoding.requests import Options, requests_of
from mmattn.decoding.room import ON_CPU, affordable
from mmattn.decoding.sampling import Sampling, sample_keys
from mmattn.errors import MmattnError
from mmattn.grounding.attention import Attention, RowChoice, Selection, attend
from mmattn.grounding.ground import asking, ground
from mmattn.grounding.locator import Locator
from mmattn.grounding.registry import locator
from mmattn.grounding.result import Grounding
from mmattn.images import ImageLike, open_image
from mmattn.referring import ControlMLLM, Referred, Region, preset, refer
from mmattn.signals import Detector, Guidance, Signals, guided, read

Images = ImageLike | Sequence[ImageLike] | None


class VLM:
    """A transformers model with its processor; both stay unmodified.

    Attributes:
        name: what it was loaded as.
        model, processor: the transformers objects.
        adapter: the bridge for this model family.
        localisation_head: (layer, head) whose attention points best at things, or None where nobody measured it.
        grounding_heads: (layer, head) pairs whose mean grounds best under the grounding methods' own question; empty
            where nobody measured it.
        detector, chunk_detector: of hallucinated words, and of chunks for guided decoding; None where nobody trained
            one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        name: str | None = None,
        presets: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name or str(model.config._name_or_path or type(model).__name__)
        self.adapter = adapter_for(model, processor)
        head = (presets or {}).get("localisation_head")
        self.localisation_head: tuple[int, int] | None = (head["layer"], head["head"]) if head else None
        heads = (presets or {}).get("grounding_heads", {}).get("heads", [])
        self.grounding_heads: tuple[tuple[int, int], ...] = tuple((layer, one) for layer, one in heads)
        self.detector: Detector | None = (presets or {}).get("detector")
        self.chunk_detector: Detector | None = (presets or {}).get("chunk-detector")

    def generate(
        self,
        images: Images | Sequence[Images],
        prompts: str | Sequence[str],
        *,
        method: str | Method = "greedy",
        max_new_tokens: int = 32,
        batch_size: int | None = None,
        seed: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop_token_ids: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
        emphasise: Any = None,
        capture: Capture | None = None,
        scores: Sequence[str | int] | None = None,
        fast: bool = True,
        share: bool = True,
        on_done: Callable[[int], None] = lambda _: None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Generation]:
        """Answer prompts about pictures, in batches, all branches of the method in one decoder call per step.

        Args:
            images: one entry per prompt: a picture (path, PIL image, array), several, or None for text alone.
                A single picture (or None) goes with every prompt. With a single prompt given as a plain string, a
                list of pictures is one sample that shows them all.
            prompts: the user's words, without image placeholders or chat template. Special tokens of the tokenizer
                that are spelt out in them ("</s>") act as such, as they do in transformers.
            method: a name from `mmattn.methods()`, perhaps with hyper-parameters ("vcd(alpha=0.5)"), or an instance.
            max_new_tokens: length limit of an answer in tokens; the end of the model's window is another one.
            batch_size: samples per batch; a method with K branches makes K rows of each. By default as many as the
                free memory of a GPU holds, up to 64 rows, and 16 samples on a CPU.
            seed: with the content of a sample it fixes every random draw, whatever the order or batch size. Equal
                samples in one call draw different tokens, from the same scores.
            do_sample, temperature, top_p, top_k: see `Sampling`.
            stop_token_ids: replaces the model's own end-of-sequence tokens.
            keys: names of the prompts' random streams, in place of their content; equal keys draw alike.
            emphasise: words of the prompt, boxes or pictures that attention is steered to: see `mmattn.emphasise`. What
                is given without a strength is for the method to steer to, or for InstABoost at its default.
            capture: which attention rows to keep while generating, `Capture()` for all; each answer then has them as
                `attention`, one row per generated token: the one that decided it. Of the plain branch, as edited.
            scores: words or token ids; each answer then has as `scores` how each of them stood when the first token was
                chosen, of a word its first token: the method's joined scores, -inf for a token that it rules out.
            fast: on a GPU, decode by fused kernels that are captured once and replayed, where the model allows it;
                the first call takes some seconds longer. False: always through the model's own modules.
            share: let prompts about one picture share its vision features and the prefill of what they have in
                common. Without rounding, the answers are the same either way.
            on_done: called with the number of answers finished after each batch.
            on_token: called with the number of the prompt and the id of its next token, for each token of an answer
                as it is chosen; what it raises ends the call. A batch that runs out of memory begins anew.

        Returns:
            One `Generation` per prompt, in order.

        Raises:
            MmattnError: unreadable picture, empty prompt, unknown method, or a setting out of range.
        """
        longest = whole("max_new_tokens", max_new_tokens, 1)
        size = ON_CPU if batch_size is None else whole("batch_size", batch_size, 1)
        steered, what = joined(resolve(method), emphasise)
        options = Options(
            method=steered,
            sampling=Sampling(do_sample, temperature, top_p, top_k),
            stop_ids=self._stop_ids(stop_token_ids),
            seed=seed,
            capture=capture and capture.resolved(self.adapter.depth, self._heads),
            fast=fast,
            share=share,
            scores=None
            if scores is None
            else {
                one: self.first_token(one) if isinstance(one, str) else self._token_ids("scores", [one])[0]
                for one in scores
            },
        )
        samples = marked(samples_of(images, prompts), what, isinstance(prompts, str))
        require_pictures(options.method, samples)
        names = sample_keys(samples) if keys is None else [(key, 0) for key in keys]
        if len(names) != len(samples):
            raise MmattnError(f"There are {len(names)} keys for {len(samples)} prompts", "Give one key per prompt.")
        shown = options.method.shown(self, samples, size)
        requests = requests_of(self.adapter, options.method, samples, shown, names, longest, self.adapter.prepare)
        if batch_size is None and requests:
            size = affordable(self.adapter, requests, 1 + len(options.method.branches()))
        return run(self.adapter, requests, options, size, on_done, on_token=on_token)

    def attend(
        self,
        image: Images,
        prompt: str,
        answer: str | Sequence[int] | Generation | None = None,
        *,
        rows: RowChoice | None = None,
        layers: Selection = None,
        method: str | Method = "greedy",
        emphasise: Any = None,
    ) -> Attention:
        """Where chosen tokens look: their attention on the image tokens, from one forward call.

        Args:
            image: a picture or several.
            prompt: the user's words.
            answer: read with teacher forcing: text, token ids, or a `Generation` (its exact tokens).
            rows: "last" (the prompt's last token, which decides the first word of the answer), "answer" (each token
                of the answer), "prompt" (each token of the prompt that is no image token), or words of `prompt`:
                their last occurrence, as whole words if there is one, capitals aside. Default: "answer" if there is
                one, else "last".
            layers: decoder layers to keep, in this order; all by default.
            method: the attention as this method edits it, on the pictures as it shows them; its other branches play no
                part.
            emphasise: as in `generate`.

        Returns:
            `Attention` with weights (layers, heads, rows, image_tokens) float32 on the CPU.
        """
        ids = answer.token_ids if isinstance(answer, Generation) else answer
        if ids is not None and not isinstance(ids, str):
            ids = self._token_ids("answer", ids)
        sample = Sample(_pictures(image), prompt, ids)
        if not sample.images:
            raise MmattnError("There is no picture to look at", "Pass an image.")
        chosen, what = joined(resolve(method), emphasise)
        sample = marked([sample], what, single=True)[0]
        return attend(self.adapter, chosen.shown(self, [sample], 1)[0], rows, layers, chosen.edits())

    @overload
    def ground(
        self, image: ImageLike, query: str, *, method: str | Locator = "tag", batch_size: int = 16
    ) -> Grounding: ...

    @overload
    def ground(
        self,
        image: ImageLike,
        query: list[str] | tuple[str, ...],
        *,
        method: str | Locator = "tag",
        batch_size: int = 16,
    ) -> list[Grounding]: ...

    def ground(
        self,
        image: ImageLike,
        query: str | list[str] | tuple[str, ...],
        *,
        method: str | Locator = "tag",
        batch_size: int = 16,
    ) -> Grounding | list[Grounding]:
        """Where in one picture the model looks for something: a map, boxes and a point to click, from attention.

        Args:
            image: one picture.
            query: what to look for ("the dog", "Sign in"), or several; with tokens="generated", what to do.
            method: a grounding method's name from `mmattn.grounding.LOCATORS`, perhaps with hyper-parameters
                ("tag(heads=5)"), or an instance.
            batch_size: queries per decoder call; the picture is prefilled once where the family allows it.

        Returns:
            A `Grounding`, or a list of them in the order of the queries. An empty map is a result with its reason.

        Raises:
            MmattnError: unreadable picture, empty query, unknown method or hyper-parameter, or rows that the family
                does not have (the prompt's tokens, in encoder-decoder models).
        """
        chosen = locator(method).bound(self.adapter.depth, self._heads, self.grounding_heads)
        queries = [query] if isinstance(query, str) else list(query)
        if not all(isinstance(one, str) for one in queries):
            raise MmattnError("A query must be text", 'Name what to look for, such as "the dog".')
        picture, size = open_image(image), whole("batch_size", batch_size, 1)

        found = (
            list(ground(self.adapter, picture, queries, chosen, size, asking(self.generate, picture, chosen, size)))
            if queries
            else []
        )
        return found[0] if isinstance(query, str) else found

    def signals(
        self,
        image: Images,
        prompt: str,
        answer: str | Sequence[int] | Generation | None = None,
        *,
        pointing: Sequence[tuple[int, int]] | None = None,
        divergence: bool = True,
        max_new_tokens: int = 64,
    ) -> Signals:
        """What attention tells of an answer, token by token: `.words(model.detector)` tells it word by word.

        Args:
            image: a picture or several.
            prompt: the user's words.
            answer: text, token ids or a `Generation`; by default the model's own, greedily decoded.
            pointing: (layer, head) pairs that tell where a word looks; all by default.
            divergence: read the answer without the picture, too, and tell how far each head's output moves.
            max_new_tokens: longest answer of the model's own.

        Raises:
            MmattnError: no picture, or an empty answer.
        """
        pictures = _pictures(image)
        if not pictures:
            raise MmattnError("There is no picture to look at", "Pass an image.")
        if answer is None:
            answer = self.generate(list(pictures), prompt, max_new_tokens=max_new_tokens)[0]
        if not isinstance(answer, str):
            answer = self._token_ids("answer", answer.token_ids if isinstance(answer, Generation) else answer)
        if not answer:
            raise MmattnError("The answer to read is empty", "Pass some text, or ask something else.")
        return read(self.adapter, [Sample(pictures, prompt, answer)], pointing, divergence)[0]

    def guide(
        self,
        images: Images | Sequence[Images],
        prompts: str | Sequence[str],
        *,
        detector: Detector | None = None,
        guidance: Guidance | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        seed: int = 0,
    ) -> list[Generation]:
        """Answers that a detector of hallucinations chose, chunk by chunk, among several that were drawn.

        Args:
            images, prompts: as in `generate`; every prompt needs a picture.
            detector: by default the model's own, trained on chunks.
            guidance: how many candidates of how many tokens are drawn, and how.
            max_new_tokens: longest answer.
            batch_size: prompts per batch; each takes as many rows as there are candidates.
            seed: with the content of a sample it fixes what is drawn.
        """
        chosen = detector or self.chunk_detector
        if chosen is None:
            raise MmattnError(
                "Nobody trained a detector of chunks for this model", "Train one: `mmattn detector train --chunk 8`."
            )
        longest, size = whole("max_new_tokens", max_new_tokens, 1), whole("batch_size", batch_size, 1)
        samples = samples_of(images, prompts)
        if not all(one.images for one in samples):
            raise MmattnError("Guided decoding needs a picture with every prompt", "Use generate().")
        answers: list[Generation] = []
        for start in range(0, len(samples), size):
            answers += guided(
                self.adapter,
                samples[start : start + size],
                chosen,
                guidance or Guidance(),
                stop_ids=self._stop_ids(None),
                max_new_tokens=longest,
                seed=seed,
            )
        return answers

    def refer(
        self,
        image: ImageLike,
        prompt: str,
        *,
        box: Sequence[float] | None = None,
        mask: Any = None,
        point: Sequence[float] | None = None,
        scribble: Sequence[Sequence[float]] | None = None,
        version: str | ControlMLLM = "controlmllm",
        max_new_tokens: int = 32,
    ) -> Referred:
        """The greedy answer about one place of a picture, which the model is made to look at (ControlMLLM).

        Args:
            image: one picture.
            prompt: the user's words.
            box: XYXY pixels of the upright original; or one of the following.
            mask: (H, W) array, picture or file, not 0 where it is meant.
            point: (x, y).
            scribble: points of a line, [(x, y), ...].
            version: a name of `mmattn.referring.PRESETS`, or settings of one's own.
            max_new_tokens: longest answer.

        Raises:
            MmattnError: no place or several are given, or it lies outside of the picture.
        """
        how, longest = preset(version), whole("max_new_tokens", max_new_tokens, 1)
        picture = open_image(image)
        given = {"box": box, "mask": mask, "point": point, "scribble": scribble}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            said = " and ".join(kinds) or "nothing"
            raise MmattnError(f"The place is given by {said}", "Give one of box, mask, point and scribble.")
        region = getattr(Region, kinds[0])(given[kinds[0]], picture.size)
        sample = Sample((picture,), prompt)
        return refer(self.adapter, sample, region, how, stop_ids=self._stop_ids(None), max_new_tokens=longest)

    def first_token(self, word: str) -> int:
        """The token that an answer of this word begins with."""
        read = self.adapter.tokenised(Sample((), "?", word), ())
        return read.ids[read.prompt_length]

    def describe(self) -> dict[str, Any]:
        """What a result file needs to name this model: JSON values only."""
        template = getattr(self.processor, "chat_template", None) or ""
        images = getattr(self.processor, "image_processor", None)
        return {
            "model": self.name,
            "family": self.adapter.family,
            "parameters": sum(one.numel() for one in self.model.parameters()),
            "weights_sha256": _fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.adapter.device.type,
            "image_processor": type(images).__name__,
            "image_backend": str(getattr(images, "backend", "unknown")),
            "attention": "mmattn over sdpa",
            "chat_template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        }

    def _stop_ids(self, given: Sequence[int] | None) -> frozenset[int]:
        if given is not None:
            return frozenset(self._token_ids("stop_token_ids", given))
        config = self.model.generation_config
        ids = getattr(config, "eos_token_id", None)
        ids = self.adapter.tokenizer.eos_token_id if ids is None else ids
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    @property
    def _heads(self) -> int:
        heads: int = self.model.config.get_text_config().num_attention_heads
        return heads

    def _token_ids(self, what: str, given: Any) -> tuple[int, ...]:
        top = self.model.get_input_embeddings().num_embeddings - 1
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise MmattnError(f"{what} must be a list of token ids, not {type(given).__name__}")
        return tuple(whole(f"A token id of {what}", one, 0, top) for one in given)


def _pictures(images: Any, opened: dict[str, Image.Image] | None = None) -> tuple[Image.Image, ...]:
    """Upright RGB pictures; files named before in the same call are not read again."""
    if images is None:
        return ()
    if isinstance(images, (list, tuple)):
        return tuple(one for part in images for one in _pictures(part, opened))
    if opened is None or not isinstance(images, (str, os.PathLike)):
        return (open_image(images),)
    if str(images) not in opened:
        opened[str(images)] = open_image(images)
    return (opened[str(images)],)


def require_pictures(method: Method, samples: Sequence[Sample]) -> None:
    """Raises MmattnError where `method` changes pictures that are not there."""
    if any(branch.pixels or branch.hidden for branch in method.branches()) and not all(one.images for one in samples):
        raise MmattnError(f"{method.label} needs a picture with every prompt", "Use method='greedy'.")


def samples_of(images: Any, prompts: str | Sequence[str]) -> list[Sample]:
    """What `VLM.generate` makes of pictures and prompts."""
    if not isinstance(prompts, (str, Sequence)):
        raise MmattnError(f"prompts must be text or a list of texts, not {type(prompts).__name__}")
    words = [prompts] if isinstance(prompts, str) else list(prompts)
    if isinstance(prompts, str) or not isinstance(images, (list, tuple)):
        pictures = _pictures(images)
        return [Sample(pictures, one) for one in words]
    if len(images) != len(words):
        raise MmattnError(
            f"There are {len(images)} images for {len(words)} prompts", "Give one entry per prompt, or a single image."
        )
    opened: dict[str, Image.Image] = {}
    return [Sample(_pictures(one, opened), text) for one, text in zip(images, words, strict=True)]


def _fingerprint(model: PreTrainedModel) -> str:
    """A hash over the names, shapes and about 64 evenly spaced values of every weight.

    Cheap, and different for another training; a change of a few single values may go unnoticed.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        digest.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
