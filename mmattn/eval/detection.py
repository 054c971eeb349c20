"""Telling hallucinated object words from true ones by signals of attention: data from captions, AUROC with intervals.

N mentions of objects, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmattn.adapters import Sample
from mmattn.errors import MmattnError
from mmattn.eval import stats
from mmattn.eval.chair import Chair
from mmattn.eval.objects import vocabulary
from mmattn.images import open_image
from mmattn.signals import Detector, Signals, read
from mmattn.signals.words import spelling

if TYPE_CHECKING:
    from mmattn.vlm import VLM

Array = NDArray[np.float64]
# What is measured beside trained detectors: one number per word, a higher one for more risk.
PLAIN: dict[str, Callable[[Signals, list[int]], float]] = {
    "probability": lambda one, at: -float(one.probability[at].log().sum()),
    "mean lookback": lambda one, at: 0.0 if one.lookback is None else -float(one.lookback[..., at].mean()),
    "mean image": lambda one, at: -float(one.image[..., at].mean()),
    "divergence": lambda one, at: -float(one.token_divergence()[at].mean()),
}


@dataclass(frozen=True)
class Mentions:
    """Object words of captions; or runs of `chunk` tokens, which are hallucinated where an object word in them is.

    Attributes:
        chunk: tokens of a run; 0 for words.
        features: (N, L H) of each signal. plain: (N,) of each of `PLAIN`.
        hallucinated: (N,) 1 where the object is not in the picture, else 0.
        pictures: (N,) number of the picture. images: how many pictures there are.
        shape: (L, H).
    """

    features: Mapping[str, Array]
    plain: Mapping[str, Array]
    hallucinated: Array
    pictures: NDArray[np.int64]
    images: int
    shape: tuple[int, int]
    chunk: int = 0

    def inputs(self, signals: Sequence[str]) -> Array:
        """Features of these signals side by side, (N, len(signals) L H)."""
        return np.concatenate([self.features[name] for name in signals], axis=1)

    def only(self, pictures: range) -> Mentions:
        """Those of these pictures."""
        kept = np.isin(self.pictures, list(pictures))
        return Mentions(
            {name: one[kept] for name, one in self.features.items()},
            {name: one[kept] for name, one in self.plain.items()},
            self.hallucinated[kept],
            self.pictures[kept] - pictures.start,
            len(pictures),
            self.shape,
            self.chunk,
        )


@dataclass(frozen=True)
class _Caption:
    """Signals of a caption of a picture, and the tokens of each object word with whether the object is missing."""

    signals: Signals
    picture: int
    words: list[tuple[list[int], bool]]

    def spans(self, chunk: int) -> list[tuple[list[int], bool]]:
        """Tokens of each word, or of each run of `chunk`, and whether they are hallucinated."""
        if not chunk:
            return self.words
        wrong = {token for tokens, missing in self.words if missing for token in tokens}
        count = len(self.signals.tokens)
        runs = [list(range(start, min(start + chunk, count))) for start in range(0, count, chunk)]
        return [(run, bool(wrong & set(run))) for run in runs]


def collect(
    vlm: VLM,
    chair: Chair,
    *,
    chunks: Sequence[int] = (0,),
    sampled: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    on_done: Callable[[int], object] = lambda _: None,
) -> list[Mentions]:
    """What the model's attention tells of captions of all pictures of `chair`: object words, or runs of tokens.

    Args:
        chunks: what is collected, see `Mentions.chunk`; one result for each.
        sampled: captions drawn at temperature 1 beside the greedy one of each picture.
        on_done: hears how many pictures were done.

    Raises:
        MmattnError: no caption names an object, or the model is an encoder-decoder.
    """
    found: list[_Caption] = []
    for start in range(0, len(chair), batch_size):
        items = [chair.item(index) for index in range(start, min(start + batch_size, len(chair)))]
        for turn in range(1 + sampled):
            for index, one in _captions(vlm, chair, items, turn, seed, batch_size):
                truth = set(items[index].meta["objects"])
                words = [
                    (list(spelling(one.ranges, (mention.start, mention.end))), mention.category not in truth)
                    for mention in vocabulary().mentions(one.text)
                ]
                found.append(_Caption(one, start + index, words))
        on_done(len(items))
    if not any(one.words for one in found):
        raise MmattnError("No caption names an object", "Is the model meant for these pictures?")
    if found[0].signals.lookback is None:
        raise MmattnError("An encoder-decoder has no lookback ratio", "Use a decoder-only model.")
    return [_mentions(found, chunk, len(chair)) for chunk in chunks]


def _mentions(captions: Sequence[_Caption], chunk: int, images: int) -> Mentions:
    spans = [(one, at, wrong) for one in captions for at, wrong in one.spans(chunk)]
    features = {
        name: np.stack([one.signals.features([name], at).double().numpy() for one, at, _ in spans])
        for name in ("lookback", "image")
    }
    image = captions[0].signals.image
    return Mentions(
        features,
        {name: np.array([rule(one.signals, at) for one, at, _ in spans]) for name, rule in PLAIN.items()},
        np.array([float(wrong) for _, _, wrong in spans]),
        np.array([one.picture for one, _, _ in spans]),
        images,
        (image.shape[0], image.shape[1]),
        chunk,
    )


def _captions(
    vlm: VLM, chair: Chair, items: Sequence[Any], turn: int, seed: int, batch_size: int
) -> list[tuple[int, Signals]]:
    """Number in `items` and signals of each caption: the greedy one at turn 0, then drawn ones; empty ones left out."""
    pictures = [open_image(item.path) for item in items]
    prompts = [item.prompt for item in items]
    answers = vlm.generate(
        pictures, prompts, max_new_tokens=chair.max_new_tokens, batch_size=batch_size, do_sample=turn > 0,
        seed=seed + turn,
    )  # fmt: skip
    told = [
        (index, Sample((pictures[index],), prompts[index], one.token_ids))
        for index, one in enumerate(answers)
        if one.token_ids
    ]
    signals = read(vlm.adapter, [sample for _, sample in told], divergence=True) if told else []
    return [(index, one) for (index, _), one in zip(told, signals, strict=True)]


def train(
    mentions: Mentions, signals: Sequence[str], penalty: float = 10.0, told: Mapping[str, Any] | None = None
) -> Detector:
    """A detector fitted to all of them."""
    given = mentions.inputs(signals)
    return Detector.fit(given, mentions.hallucinated, signals, mentions.shape, penalty, mentions.chunk, told)


SIGNALS: tuple[tuple[str, ...], ...] = (("lookback",), ("image",), ("lookback", "image"))
PENALTIES = (1.0, 10.0, 100.0)


def choose(mentions: Mentions) -> tuple[tuple[str, ...], float, dict[str, float]]:
    """Signals and penalty whose detector, trained on the first half of the pictures, does best on the rest.

    Returns:
        They, and the AUROC of all that were tried.
    """
    half = mentions.images // 2
    first, rest = mentions.only(range(half)), mentions.only(range(half, mentions.images))
    tried: dict[tuple[tuple[str, ...], float], float] = {}
    for signals in SIGNALS:
        for penalty in PENALTIES:
            value = score(rest, risks(train(first, signals, penalty), rest)).value
            tried[signals, penalty] = 0.0 if value is None else value
    best = max(tried, key=lambda one: tried[one])
    return *best, {f"{'+'.join(names)}, penalty {penalty:g}": value for (names, penalty), value in tried.items()}


def risks(detector: Detector, mentions: Mentions) -> Array:
    """(N,) what the detector says of each mention."""
    given = torch.from_numpy(mentions.inputs(detector.signals))
    return np.asarray(detector.risks(given).double().numpy())


def score(mentions: Mentions, said: Array) -> stats.Estimate:
    """AUROC of `said` (N,) for telling the hallucinated ones, with its bootstrap interval over pictures."""
    value = auroc(said, mentions.hallucinated, np.ones(len(said)))
    weights = stats.resample(mentions.images)[:, mentions.pictures]
    return stats.estimate(value, auroc(said, mentions.hallucinated, weights))


def auroc(said: Array, positive: Array, weights: Array) -> Array:
    """Area under the ROC curve for `weights` (..., N): the chance that a positive is above a negative, ties half."""
    order = np.argsort(said, kind="stable")
    starts = np.flatnonzero(np.diff(said[order], prepend=-np.inf))
    up = np.add.reduceat((weights * positive)[..., order], starts, axis=-1)
    down = np.add.reduceat((weights * (1 - positive))[..., order], starts, axis=-1)
    below = down.cumsum(-1) - down / 2
    pairs = up.sum(-1) * down.sum(-1)
    area: Array = np.divide((up * below).sum(-1), pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)
    return area
