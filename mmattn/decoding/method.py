"""What a method is: a frozen dataclass with a card, a word in what is shown, edits of attention, extra branches, and a
rule that joins their logits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmattn.adapters import Sample
from mmattn.attention import Edit
from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.vlm import VLM


@dataclass(frozen=True)
class Card:
    """What a user should know of a method before choosing it.

    Attributes:
        summary: one line.
        source: paper and, where there is one, public code.
        formula: where its formula comes from.
        exact: True if the formula is published; False for a labelled reconstruction.
        branches: rows per sample in each decoder call, the plain one included.
        extra_passes: model passes beyond those of plain decoding, in words.
        defaults_from: where the default constants come from.
        presets: other published settings, by the model or source that they are for; each is a `method=`.
    """

    summary: str
    source: str
    exact: bool
    branches: int
    extra_passes: str
    defaults_from: str
    formula: str = "public code"
    presets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Branch:
    """Another input for the same sample, decoded beside the plain one.

    Attributes:
        name: names its rows, for edits and messages; "plain" is taken.
        pixels: replaces the normalised pixel values of each picture; gets a generator seeded per sample.
        sample: changes words or pictures.
        hidden: chooses image tokens that nothing in this branch may look at: gets, per probe, what the last token of
            the prompt looks at, (layers, heads, image tokens) float32, and returns (image tokens,) bool. The probe
            "plain" is the sample as it is.
        zeroed: the chosen image tokens are seen after all, but with features of 0.
        decoded: False for rows that take part in the prefill alone.
    """

    name: str
    pixels: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None
    sample: Callable[[Sample], Sample] | None = None
    hidden: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] | None = None
    zeroed: bool = False
    decoded: bool = True


@dataclass(frozen=True)
class Exits:
    """Layers in front of which a rule reads the scores that the unfinished hidden state of the plain branch gives.

    Attributes:
        layers: how many layers the state has gone through, 0 (the embedded token) up to one less than there are.
        normed: pass it through the decoder's final norm before the head.
    """

    layers: tuple[int, ...]
    normed: bool = False


@dataclass(frozen=True)
class Step:
    """What is known when the next token is chosen.

    Attributes:
        logits: scores (B, K, V) of the decoded branches, the plain one first.
        number: () whole number of the token, counted from 0; on the device, so that a captured step can count.
        exits: (B, exits, V) scores of the plain branch's unfinished states, for a method with `exits`.
    """

    logits: torch.Tensor
    number: torch.Tensor
    exits: torch.Tensor | None = None


@dataclass(frozen=True)
class Method:
    """Plain decoding, and the base of every method: no extra branch, the logits as they are.

    A method changes what the next token is chosen from; how it is chosen (greedy, temperature, top-p, top-k) is the
    caller's business and comes after.
    """

    name: ClassVar[str] = "greedy"
    card: ClassVar[Card] = Card(
        summary="Plain decoding: the model's own next-token scores.",
        source="baseline",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="no constants",
    )

    def shown(self, vlm: VLM, samples: Sequence[Sample], batch_size: int) -> list[Sample]:  # noqa: ARG002
        """`samples` with the pictures that the model is to see, before anything is prepared; batches for `vlm`."""
        return list(samples)

    def branches(self) -> tuple[Branch, ...]:
        """Branches beyond the plain one."""
        return ()

    def edits(self) -> tuple[Edit, ...]:
        """Changes of attention, in order; none at neutral strength, so that the plain model stays what it is."""
        return ()

    def probes(self) -> dict[str, Callable[[Sample], Sample]]:
        """Changed samples whose attention `Branch.hidden` wants to see, by name; "plain" comes without asking."""
        return {}

    def exits(self, depth: int, tied: bool) -> Exits | None:  # noqa: ARG002
        """Whose scores `combine` wants, in a decoder of `depth` layers; its head may be `tied` to the embeddings."""
        return None

    def combine(self, step: Step) -> torch.Tensor:
        """Join the branches' scores into (B, V); -inf forbids a token. Plain tensor work, as in edits."""
        return step.logits[:, 0]

    @property
    def rules(self) -> bool:
        """Whether the method rewrites the scores, beyond editing attention."""
        return any(one.decoded for one in self.branches()) or type(self).combine is not Method.combine

    @property
    def captured(self) -> bool:
        """Whether a captured step can do the method's work on each token."""
        return True

    @property
    def repaints(self) -> bool:
        """Whether the method changes what the model is shown."""
        return type(self).shown is not Method.shown

    @property
    def label(self) -> str:
        """The name, with the hyper-parameters that are not at their default, as `resolve` reads it."""
        fields = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        changed = [f"{name}={value!r}" for name, value, default in fields if value != default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters, as written into every result file."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Combined(Method):
    """Several methods at once: all their changes of the pictures and edits of attention, in order, in every branch,
    and the rule of the one that has a rule.

    Attributes:
        parts: at most one of them decodes further branches or rewrites the scores.
    """

    parts: tuple[Method, ...] = ()

    name: ClassVar[str] = "combined"

    def __post_init__(self) -> None:
        rules = [one.name for one in self.parts if one.rules]
        if len(rules) > 1:
            raise MmattnError(
                f"{' and '.join(rules)} both rewrite the next-token scores", "Join at most one such method."
            )
        names = [one.name for one in self.branches()]
        if len(set(names)) < len(names):
            raise MmattnError(f"The branch {names[0]!r} stands there twice", "Join different methods.")

    @property
    def rules(self) -> bool:
        return any(one.rules for one in self.parts)

    @property
    def captured(self) -> bool:
        return all(one.captured for one in self.parts)

    @property
    def repaints(self) -> bool:
        return any(one.repaints for one in self.parts)

    @property
    def label(self) -> str:
        return "+".join(one.label for one in self.parts)

    @property
    def _rule(self) -> Method:
        return next((one for one in self.parts if one.rules), Method())

    def shown(self, vlm: VLM, samples: Sequence[Sample], batch_size: int) -> list[Sample]:
        changed = list(samples)
        for one in self.parts:
            changed = one.shown(vlm, changed, batch_size)
        return changed

    def edits(self) -> tuple[Edit, ...]:
        return tuple(change for one in self.parts for change in one.edits())

    def branches(self) -> tuple[Branch, ...]:
        return tuple(branch for one in self.parts for branch in one.branches())

    def probes(self) -> dict[str, Callable[[Sample], Sample]]:
        return self._rule.probes()

    def exits(self, depth: int, tied: bool) -> Exits | None:
        return self._rule.exits(depth, tied)

    def combine(self, step: Step) -> torch.Tensor:
        return self._rule.combine(step)

    def settings(self) -> dict[str, Any]:
        return {"name": "+".join(one.name for one in self.parts), "parts": [one.settings() for one in self.parts]}


class Contrast(Method):
    """Base of methods that compare the plain branch with others; with no branch (neutral strength) they are plain."""

    @property
    def rules(self) -> bool:
        return any(one.decoded for one in self.branches())

    def combine(self, step: Step) -> torch.Tensor:
        return self.contrast(step) if self.rules else step.logits[:, 0]

    def contrast(self, step: Step) -> torch.Tensor:
        """`combine`, where there are branches."""
        raise NotImplementedError


def plausible(logits: torch.Tensor, beta: float) -> torch.Tensor:
    """Tokens whose probability under `logits` (B, V) is at least `beta` times the largest: (B, V) bool.

    The adaptive plausibility constraint of contrastive decoding (Li et al., ACL 2023).
    """
    floor = logits.amax(-1, keepdim=True)
    if beta > 0:
        return logits >= floor + math.log(beta)
    return torch.ones_like(logits, dtype=torch.bool)


def contrasted(logits: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """(1 + alpha) z - alpha z' over plausible tokens, from the scores (B, 2, V) of two branches: (B, V)."""
    plain, other = logits.unbind(1)
    return torch.where(plausible(plain, beta), torch.lerp(other, plain, 1 + alpha), -torch.inf)


def without_pictures(sample: Sample) -> Sample:
    """The words alone: the template then leaves no placeholder."""
    return dataclasses.replace(sample, images=())
