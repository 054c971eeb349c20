"""Inside code that torch.compile has compiled: rows are read and edited in it, and `mmattn.edit` goes around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import mmattn
from mmattn.attention.compiling import compiling, uncompiled
from mmattn.decoding import Boost
from mmattn.decoding.fast import LANES
from tests.stock import inputs_of, new_tokens
from tests.test_editing import SETTINGS
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


@contextmanager
def compiled(module: torch.nn.Module, **settings: Any) -> Iterator[None]:
    """Its forward traced by Dynamo, which is what decides what happens to hooks, contexts and branches."""
    torch._dynamo.reset()
    before = module.forward
    module.forward = torch.compile(before, backend="eager", **settings)
    try:
        yield
    finally:
        module.forward = before
        torch._dynamo.reset()


def test_rows_are_read_and_edited_inside_one_compiled_graph(family: mmattn.VLM, pictures: list[Any]) -> None:
    def read(method: Any) -> torch.Tensor:
        return family.attend(pictures[1], "what?", "yes", method=method).weights

    methods = ("greedy", Boost(5))
    plain = [read(one) for one in methods]
    with compiled(family.adapter.decoder, fullgraph=True):
        for method, expected in zip(methods, plain, strict=True):
            torch.testing.assert_close(read(method), expected, atol=1e-6, rtol=0)
    assert (plain[0] - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llava", "instructblip-t5"])
def test_a_compiled_model_is_edited(name: str, pictures: list[Any]) -> None:
    """What was compiled before does not know the hooks that `mmattn.edit` sets."""
    vlm = mmattn.wrap(*FAMILIES[name](spread=0.1))
    inputs = inputs_of(vlm, [[one] for one in pictures[:2]], PROMPTS[:2])
    settings = {**SETTINGS, "max_new_tokens": 3, "cache_implementation": "static"}

    def tokens() -> list[list[int]]:
        return new_tokens(vlm, inputs, **settings)

    def edited(strength: float) -> list[list[int]]:
        with mmattn.edit(vlm.model, Boost(strength)):
            return tokens()

    plain, expected, other = tokens(), edited(6), edited(0.1)
    with compiled(getattr(vlm.model, "language_model", vlm.model)):
        assert tokens() == plain
        assert edited(6) == expected
        assert edited(0.1) == other
        assert tokens() == plain
    assert plain != expected != other


def test_edits_that_ask_for_hidden_states_work_in_a_compiled_decoder(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    def read(method: str, picture: int = 1) -> torch.Tensor:
        return vlm.attend(pictures[picture], "what?", "yes", method=method).weights

    method = "var(tau=1.5, summ=0, rho=1, p=0, start=0, spared=0)"
    plain, expected, other = read("greedy"), read(method), read(method, picture=0)
    assert (plain - expected).abs().max() > 1e-3
    with compiled(vlm.adapter.decoder):
        torch.testing.assert_close(read("greedy"), plain, atol=1e-6, rtol=0)
        torch.testing.assert_close(read(method), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(read(method, picture=0), other, atol=1e-6, rtol=0)


def test_the_switch_goes_back_when_the_last_user_has_left() -> None:
    calls: list[bool] = []
    function = torch.compile(lambda: calls.append(torch.compiler.is_compiling()), backend="eager")
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with uncompiled():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with uncompiled():
        thread.start()
        inside.wait()
        function()
    function()
    leave.set()
    thread.join()
    function()
    assert calls == [False, False, True]


@pytest.mark.parametrize("method", ["var", "boost"])
def test_a_captured_step_is_prepared_while_code_may_be_compiled(
    method: str, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit that looks at hidden states forbids compiled code later, for the prefill."""
    calls: list[bool] = []
    function = torch.compile(lambda: calls.append(torch.compiler.is_compiling()), backend="eager")
    monkeypatch.setattr(LANES, "take", lambda *_: function())
    vlm = mmattn.wrap(*FAMILIES["llava"]())
    assert vlm.generate(pictures[0], "q", method=method, max_new_tokens=2)
    assert calls == [True]


def test_what_cannot_be_compiled_runs_as_it_is_written() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    doubled = torch.compile(lambda x: 2 * x, backend=broken)
    with compiling():
        assert doubled(torch.ones(2)).tolist() == [2, 2]
