"""A linear detector of hallucinated words: logistic regression on signals (Chuang et al., EMNLP 2024)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.signals.read import Signals

FORMAT = "mmattn-detector/1"
SIGNALS = ("lookback", "image")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """Risk that a run of tokens is hallucinated: expit(bias + weights . features), features as `Signals.features`.

    Attributes:
        signals: which ones are features: "lookback", "image", or both.
        shape: (layers, heads) of the model it was trained for.
        weights: one per signal, layer and head. bias: of the sum.
        chunk: what it was trained on: 0 for words that name objects, else runs of so many tokens, as guided decoding
            judges them.
        told: how it was trained.
    """

    signals: tuple[str, ...]
    shape: tuple[int, int]
    weights: tuple[float, ...]
    bias: float
    chunk: int = 0
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def risks(self, features: torch.Tensor) -> torch.Tensor:
        """(...,) in 0..1 from features (..., len(weights))."""
        if features.shape[-1] != len(self.weights):
            raise MmattnError(
                f"The detector reads {len(self.weights)} numbers, the model gives {features.shape[-1]}",
                "Train one for this model: `mmattn detector train`.",
            )
        return torch.sigmoid(features.float() @ torch.tensor(self.weights, device=features.device) + self.bias)

    def risk(self, signals: Signals, tokens: Sequence[int]) -> float:
        """The risk of these tokens of an answer."""
        return float(self.risks(signals.features(self.signals, tokens)))

    @classmethod
    def fit(
        cls,
        features: Array,
        hallucinated: Array,
        signals: Sequence[str],
        shape: tuple[int, int],
        penalty: float = 10.0,
        chunk: int = 0,
        told: Mapping[str, Any] | None = None,
    ) -> Detector:
        """Trained on features (N, F) and labels (N,) of 0 and 1.

        Minimises the summed log loss plus penalty / 2 times the squared weights of standardised features; the bias
        is free.

        Raises:
            MmattnError: only one kind of label.
        """
        if len(set(np.unique(hallucinated))) < 2:
            raise MmattnError(
                "Nothing to tell apart: all words are hallucinated, or none is", "Train on more, or other, pictures."
            )
        middle, spread = features.mean(0), features.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        known = (features - middle) / spread
        sign = np.where(hallucinated > 0, 1.0, -1.0)

        def loss(theta: Array) -> tuple[float, Array]:
            margin = sign * (known @ theta[:-1] + theta[-1])
            pull = -sign * expit(-margin)
            slope = np.append(known.T @ pull + penalty * theta[:-1], pull.sum())
            return float(np.logaddexp(0, -margin).sum() + penalty / 2 * (theta[:-1] @ theta[:-1])), slope

        best: Array = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
        weights = best[:-1] / spread
        bias = float(best[-1] - weights @ middle)
        return cls(tuple(signals), shape, tuple(weights.tolist()), bias, chunk, told or {})

    def save(self, path: Path) -> None:
        """As JSON."""
        told = {
            "format": FORMAT, "signals": list(self.signals), "shape": list(self.shape), "chunk": self.chunk,
            "bias": round(self.bias, 6),
            "weights": [round(one, 6) for one in self.weights], "trained": dict(self.told),
        }  # fmt: skip
        path.write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Detector:
        """What `save` wrote.

        Raises:
            MmattnError: missing, or no such file.
        """
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']}")
            layers, heads = map(int, told["shape"])
            weights = tuple(map(float, told["weights"]))
            signals = tuple(told["signals"])
            if not signals or not set(signals) <= set(SIGNALS) or len(weights) != len(signals) * layers * heads:
                raise ValueError("signals, shape and weights do not fit together")
            chunk, trained = int(told["chunk"]), dict(told.get("trained", {}))
            return cls(signals, (layers, heads), weights, float(told["bias"]), chunk, trained)
        except OSError as error:
            raise MmattnError(f"Cannot read the detector {path} ({error.strerror})", "Check the path.") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MmattnError(
                f"{path} is no detector ({error})", "Train one: `mmattn detector train --out FILE`."
            ) from error
