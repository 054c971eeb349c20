"""Answers that can be watched while they grow, and stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """The user has seen enough."""


class Stops:
    """One stop flag per page."""

    def __init__(self) -> None:
        self._flags: dict[str, Event] = {}

    def begin(self, page: str) -> Event:
        """A fresh flag for the work that starts now on this page."""
        self._flags[page] = Event()
        return self._flags[page]

    def stop(self, page: str) -> None:
        """Raise the flag of the work on this page, if there is any."""
        if page in self._flags:
            self._flags[page].set()

    def forget(self, page: str) -> None:
        """The page was closed: stop its work, too."""
        self.stop(page)
        self._flags.pop(page, None)


class Stream(Generic[T]):
    """A call in a thread of its own; iterating gives the tokens that it tells of, as they come.

    Args:
        call: gets what to pass as `on_token`.
        stop: when set, the call ends with its next token.

    Attributes:
        tokens: the ids so far.
        stopped: whether it was stopped.
    """

    def __init__(self, call: Callable[[Callable[[int, int], None]], T], stop: Event) -> None:
        self.tokens: list[int] = []
        self.stopped = False
        self._call, self._stop = call, stop
        self._heard: SimpleQueue[Any] = SimpleQueue()
        self._result: T | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[list[int]]:
        worker = Thread(target=self._run, daemon=True)
        worker.start()
        try:
            while (token := self._heard.get()) is not None:
                self.tokens.append(token)
                while not self._heard.empty() and (token := self._heard.get()) is not None:
                    self.tokens.append(token)
                yield self.tokens
                if token is None:
                    break
        except GeneratorExit:
            self._stop.set()  # the page is gone
            raise
        worker.join()
        if self._error is not None:
            raise self._error

    @property
    def result(self) -> T | None:
        """What the call returned; None if it was stopped."""
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call(self._tell)
        except StoppedError:
            self.stopped = True
        except BaseException as error:  # it belongs to the thread that iterates
            self._error = error
        finally:
            self._heard.put(None)

    def _tell(self, _number: int, token: int) -> None:
        if self._stop.is_set():
            raise StoppedError
        self._heard.put(token)
