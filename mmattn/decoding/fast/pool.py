"""Which captured steps a model keeps, and who may use one."""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from mmattn.adapters import Adapter
from mmattn.attention import active
from mmattn.decoding.fast.parts import NotFastError, take_apart
from mmattn.decoding.method import Method
from mmattn.decoding.recorder import Capture
from mmattn.decoding.sampling import Sampling
from mmattn.errors import MmattnError

LOG = logging.getLogger("mmattn")

if TYPE_CHECKING:
    from mmattn.decoding.fast.lane import Lane

# A lane serves whatever fits into it, so its numbers of slots, steps and columns are multiples of these.
SLOTS, STEPS, COLUMNS = 256, 64, 64


def up(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Size:
    """How large a batch is.

    Attributes:
        samples: of which each has as many rows as the method has branches.
        slots: tokens of the longest prompt and answer together.
        steps: tokens of the longest answer.
        columns: keys whose attention is kept, from the first image token to the last; 0 for none.
    """

    samples: int
    slots: int
    steps: int
    columns: int = 0

    def rounded(self) -> Size:
        """The size of a lane for such batches."""
        samples = 1 << (self.samples - 1).bit_length()
        return Size(samples, up(self.slots, SLOTS), up(self.steps, STEPS), up(self.columns, COLUMNS))


@dataclass(frozen=True)
class Rules:
    """What a captured step has built in."""

    method: Method
    sampling: Sampling
    stop_ids: frozenset[int]
    capture: Capture | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The branches that are decoded, the plain one first."""
        return ("plain", *(branch.name for branch in self.method.branches() if branch.decoded))

    @property
    def hides(self) -> bool:
        """Whether some image tokens of a decoded branch must not be looked at."""
        return any(branch.hidden and branch.decoded and not branch.zeroed for branch in self.method.branches())


class Lanes:
    """The lanes of each model; a batch takes one out while it uses it, so that threads do not meet.

    Attributes:
        room: lanes that a model keeps; each holds a cache of its own.
    """

    def __init__(self, room: int = 2) -> None:
        self.room = room
        self._kept: weakref.WeakKeyDictionary[torch.nn.Module, list[Lane]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._refused: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def take(self, adapter: Adapter, rules: Rules, size: Size) -> Lane | None:
        """A lane for a batch, or None where there cannot be one; on a GPU that is told once per model."""
        if not self.usable(adapter) or _watched(adapter):
            return None
        with self._lock:
            kept = self._kept.setdefault(adapter.model, [])
            found = next((one for one in kept if one.fits(rules, size)), None)
            if found is not None:
                kept.remove(found)
                if found.valid:
                    return found
            kept[:] = [one for one in kept if one.valid]  # others hold weights that the model has left
        try:
            # Triton comes with torch wherever there is a GPU; nobody else should wait for its import.
            from mmattn.decoding.fast.lane import Lane

            parts = take_apart(adapter)
            LOG.info("Preparing the captured step of %s: some seconds, once for its size", rules.method.label)
            del kept[self.room - 1 :]  # nobody else holds these: there may not be memory for all
            return Lane(adapter, parts, rules, size)
        except torch.cuda.OutOfMemoryError:
            kept.clear()
            raise
        except MmattnError:
            raise  # what the user asked for, not what the device can
        except NotFastError as reason:
            self._refuse(adapter, str(reason))
        except Exception as error:  # whatever a compiler or driver may say: the plain way still works
            self._refuse(adapter, f"{type(error).__name__}: {error}")
        return None

    def prefill(self, adapter: Adapter) -> Callable[..., torch.Tensor] | None:
        """`Lane.prefill` for prompts that nobody edits: takes `batch`, `cache` and a `session` that may read last rows.

        None before the model's first lane has shown that all this works.
        """
        if _watched(adapter):
            return None
        with self._lock:
            lane = next((one for one in self._kept.get(adapter.model, ()) if one.valid), None)
        return None if lane is None else partial(lane.prefill, adapter)

    def give(self, adapter: Adapter, lane: Lane) -> None:
        """Put a lane back, in front."""
        with self._lock:
            kept = self._kept.setdefault(adapter.model, [])
            kept.insert(0, lane)
            del kept[self.room :]

    def clear(self, adapter: Adapter) -> None:
        """Free what the lanes of a model hold."""
        self._kept.pop(adapter.model, None)

    def usable(self, adapter: Adapter) -> bool:
        """Whether the model's device has the fast step at all, and the model was not refused before."""
        return adapter.device.type == "cuda" and adapter.model not in self._refused

    def _refuse(self, adapter: Adapter, why: str) -> None:
        self._refused.add(adapter.model)
        warnings.warn(f"Decoding step by step, without a captured graph: {why}", stacklevel=2)


def _watched(adapter: Adapter) -> bool:
    """Whether someone around this call edits or reads, too."""
    return bool(active(adapter.attention_layers[0]))


LANES = Lanes()
