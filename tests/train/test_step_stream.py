"""The coordinator's side of a stream: what goes out when, and what results must say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from edgeweave.core.errors import WireError
from edgeweave.data.batches import Batch
from edgeweave.net import FrameHeader
from edgeweave.train.step_stream import Pipe, StepStream


class Line:
    """A pipeline whose last stage answers at once; the clock is counted by hand."""

    def __init__(self, *, window: int, weight_aggregation: int | None = None) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.versions: dict[int, float | None] = {}
        self.weight_aggregation = weight_aggregation
        self._rounds = 0
        pipe = Pipe(window, self.announce, self.send, self.result, lambda: self.now)
        self.stream: StepStream[tuple[int, float]] = StepStream(
            pipe, self.summed, weight_aggregation=weight_aggregation
        )

    def announce(self, step: int, n_parts: int, told: Mapping[str, float]) -> int:
        number, self._rounds = self._rounds, self._rounds + 1
        kind = "begin" if told["train"] else "flush"
        self.log.append(f"{kind} {number}")
        if told["train"]:
            self.versions.setdefault(number, float(step))
        return number

    def send(self, number: int, microbatch: int, part: Batch) -> None:
        self.log.append(f"> {number}.{microbatch}")

    def result(self, number: int, microbatch: int) -> FrameHeader:
        self.log.append(f"< {number}.{microbatch}")
        self.now += 1.0
        version = self.versions[number]
        scalars = {} if version is None else {"version": version}
        return FrameHeader("result", "pi-c", 2, 0, number, microbatch, (), scalars)

    def summed(self, results: Sequence[FrameHeader], seconds: float) -> tuple[int, float]:
        return results[0].step, seconds

    def submit(self, step: int, n_parts: int) -> None:
        self.stream.submit(step, [Batch({}, 1)] * n_parts, {"train": 1.0})


def test_inputs_of_the_next_step_go_out_before_the_results_of_this_one_are_here() -> None:
    line = Line(window=3)
    line.submit(0, 2)
    line.submit(1, 2)
    assert line.log == ["begin 0", "> 0.0", "> 0.1", "begin 1", "> 1.0", "< 0.0", "> 1.1"]


def test_steps_are_collected_in_order_and_their_seconds_add_up() -> None:
    line = Line(window=3)
    for step in range(3):
        line.submit(step, 2)
    found = [*line.stream.collect_nowait(), *line.stream.collect_all()]
    assert [number for number, _ in found] == [0, 1, 2]
    assert sum(seconds for _, seconds in found) == line.now == 6.0


def test_only_steps_whose_results_were_heard_are_collected_without_waiting() -> None:
    line = Line(window=3)
    line.submit(0, 2)
    assert line.stream.collect_nowait() == ()
    line.submit(1, 3)
    assert [number for number, _ in line.stream.collect_nowait()] == [0]
    assert line.stream.collect() == (1, 3.0)


def test_a_flush_hears_everything_and_is_told_once() -> None:
    line = Line(window=4)
    line.submit(0, 2)
    line.stream.flush()
    line.stream.flush()
    assert line.log[-3:] == ["< 0.0", "< 0.1", "flush 1"]
    assert [number for number, _ in line.stream.collect_all()] == [0]


def test_a_run_that_trained_nothing_has_nothing_to_flush() -> None:
    line = Line(window=4)
    line.stream.flush()
    assert line.log == []


@pytest.mark.parametrize("told", [1.0, None])
def test_a_result_of_other_weights_ends_the_run(told: float | None) -> None:
    line = Line(window=4)
    line.versions[0] = told
    line.submit(0, 1)
    with pytest.raises(
        WireError, match=r"expects version 0 .* \(round 0\) \(got .* from stage 2 on pi-c\)"
    ):
        line.stream.collect()


def test_a_mean_of_versions_is_a_version_of_its_own() -> None:
    line = Line(window=9, weight_aggregation=2)
    line.versions.update({0: 0.0, 1: 1.0, 2: 3.0, 3: 4.0, 4: 6.0})
    for step in range(5):
        line.submit(step, 1)
    assert len(line.stream.collect_all()) == 5
