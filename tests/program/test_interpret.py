"""Running a program node by node: what is computed, what is kept, what is forgotten."""

from __future__ import annotations

import gc
import weakref

import torch

from edgeweave.program import Program
from edgeweave.program.graph import SHARED_UNIT, Node, Size
from edgeweave.program.interpret import Interpreter
from tests.program.graphs import listed, node, program, state_of, two_layers

CPU = torch.device("cpu")
X = torch.linspace(-1, 1, 8).reshape(2, 4)


def _chain() -> Program:
    return program(
        node("tanh.default", ("input:0",), "a"),
        node("exp.default", ("a",), "b"),
        node("add.Tensor", ("b", "a"), "c", unit=3),
        node("neg.default", ("c",), "d", unit=3),
        outputs=("d",),
    )


def _ruler() -> Program:
    return program(
        node("arange.default", (Size(4),), "flat", unit=SHARED_UNIT),
        node("reshape.default", ("flat", listed(-1, 4)), "ruler", unit=SHARED_UNIT),
        node("add.Tensor", ("input:0", "ruler"), "y"),
        outputs=("y",),
    )


def test_the_wanted_values_are_computed() -> None:
    found = Interpreter(_chain(), {}, device=CPU).run({"input:0": X}, 2, wanted=("d",))
    assert found.keys() == {"d"}
    assert torch.equal(found["d"], -(torch.exp(torch.tanh(X)) + torch.tanh(X)))


def test_the_state_is_used_in_place() -> None:
    given = two_layers()
    state = state_of(given)
    interpreter = Interpreter(given, state, device=CPU)
    before = interpreter.run({"input:0": X}, 2, wanted=("y",))["y"]
    state["v"].mul_(2)
    assert torch.equal(interpreter.run({"input:0": X}, 2, wanted=("y",))["y"], 2 * before)


def test_a_replaced_state_is_used_by_later_runs_and_the_old_tensor_is_untouched() -> None:
    given = two_layers()
    state = state_of(given)
    interpreter = Interpreter(given, state, device=CPU)
    old = state["v"].clone()
    interpreter.replace_state("v", torch.zeros(2, 3))
    assert not interpreter.run({"input:0": X}, 2, wanted=("y",))["y"].any()
    assert torch.equal(state["v"], old)


def test_a_value_is_freed_after_its_last_use() -> None:
    alive: dict[str, weakref.ref[torch.Tensor]] = {}
    seen_alive: dict[str, set[str]] = {}

    def observe(current: Node, results: tuple[torch.Tensor, ...]) -> None:
        name = current.results[0].name
        seen_alive[name] = {n for n, ref in alive.items() if ref() is not None}
        alive[name] = weakref.ref(results[0])

    Interpreter(_chain(), {}, device=CPU).run({"input:0": X}, 2, wanted=("d",), observe=observe)
    assert seen_alive == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"c"}}


def test_a_result_nobody_reads_is_freed_at_once() -> None:
    given = program(
        node("tanh.default", ("input:0",), "unused"),
        node("neg.default", ("input:0",), "y"),
        outputs=("y",),
    )
    refs: list[weakref.ref[torch.Tensor]] = []

    def observe(current: Node, results: tuple[torch.Tensor, ...]) -> None:
        assert all(ref() is None for ref in refs)
        refs.append(weakref.ref(results[0]))

    Interpreter(given, {}, device=CPU).run({"input:0": X}, 2, wanted=("y",), observe=observe)
    assert len(refs) == 2


def test_an_input_is_let_go_once_the_caller_does() -> None:
    interpreter = Interpreter(_chain(), {}, device=CPU)
    given = X.clone()
    interpreter.run({"input:0": given}, 2, wanted=("d",))
    ref = weakref.ref(given)
    del given
    gc.collect()
    assert ref() is None


def test_units_are_entered_in_order_and_once() -> None:
    entered: list[int] = []
    Interpreter(_chain(), {}, device=CPU).run(
        {"input:0": X}, 2, wanted=(), enter_unit=entered.append
    )
    assert entered == [0, 3]


def test_what_depends_on_no_data_is_computed_once_per_batch_size() -> None:
    calls: list[str] = []

    def find(name: str) -> object:
        packet, overload = name.split(".")[1:]
        found = getattr(getattr(torch.ops.aten, packet), overload)

        def call(*args: object, **kwargs: object) -> object:
            calls.append(packet)
            return found(*args, **kwargs)

        return call

    interpreter = Interpreter(_ruler(), {}, device=CPU, find=find)  # type: ignore[arg-type]
    for batch in (2, 2, 1, 2):
        interpreter.run({"input:0": X[:batch]}, batch, wanted=("y",))
    assert calls.count("arange") == 2
    assert calls.count("add") == 4


def test_only_the_last_two_batch_sizes_are_remembered() -> None:
    interpreter = Interpreter(_ruler(), {}, device=CPU)
    for batch in (1, 2, 3, 4):
        x = torch.zeros(batch, 4)
        found = interpreter.run({"input:0": x}, batch, wanted=("y",))["y"]
        assert torch.equal(found.flatten(), torch.arange(4.0 * batch))
    assert sorted(interpreter._shared_cache) == [3, 4]


def test_factories_allocate_on_the_interpreters_device() -> None:
    found = Interpreter(_ruler(), {}, device=torch.device("meta")).run(
        {"input:0": X.to("meta")}, 2, wanted=("ruler",)
    )
    assert found["ruler"].device.type == "meta"


def test_a_wanted_input_or_state_is_handed_back() -> None:
    given = two_layers()
    state = state_of(given)
    found = Interpreter(given, state, device=CPU).run({"input:0": X}, 2, wanted=("w",))
    assert found["w"] is state["w"]
