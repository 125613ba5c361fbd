"""The guard: gradients compared when that is due, and bits given back when they disagree."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch

from edgeweave.data.batches import Batch
from edgeweave.device import Agreement
from edgeweave.plan import Coding, LinkCodec, Recoding
from edgeweave.train.codec_watch import CodecWatch
from edgeweave.train.run import PipelineRun, RoundResult
from tests.plan.test_recoding import BACK, THERE, planned

GOOD, BENT, SHORT = Agreement(0.97, 1.01), Agreement(0.8, 1.0), Agreement(0.99, 0.7)
BATCH = Batch({"input:0": torch.zeros(64, 2)}, 64)


class Run:
    """A run that compares gradients as told, and notes when and with how many samples."""

    def __init__(self, codecs: tuple[LinkCodec, ...], agreement: Agreement = GOOD) -> None:
        self.codecs = codecs
        self.link_rates: dict[tuple[str, str], float] = {}
        self.agreement = agreement
        self.compared: list[tuple[int, int]] = []

    def compare(self, step: int, batch: Batch) -> Agreement:
        self.compared.append((step, batch.n_samples))
        return self.agreement


def train(watch: CodecWatch, run: Run, steps: range, rate: float | None = None) -> None:
    rates = {} if rate is None else {THERE: rate, BACK: rate}
    result = RoundResult(0.0, {}, 64, 1.0, link_bytes_per_second=rates)
    for step in steps:
        watch.before(cast("PipelineRun", run), step, BATCH)
        watch.after(cast("PipelineRun", run), step, result, tuple)


def test_good_gradients_are_compared_ever_less_often() -> None:
    plan, costs = planned(0.2e6)
    run, watch = Run(plan.codecs), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(2000), 0.2e6)
    assert [step for step, _ in run.compared] == [128, 256, 512, 1024, 1536]
    assert {n for _, n in run.compared} == {32}
    assert watch.changes == ()
    assert run.codecs == plan.codecs


@pytest.mark.parametrize("bad", [BENT, SHORT, Agreement(0.99, 1.4)])
def test_bent_gradients_make_every_link_keep_more_bits_in_the_end_all(bad: Agreement) -> None:
    plan, costs = planned(0.05e6)
    run, watch = Run(plan.codecs, bad), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(300), 0.05e6)
    assert [step for step, _ in run.compared] == [128, 129, 130]
    assert [{codec.bits for codec in change.codecs} for change in watch.changes] == [
        {8},
        {16},
        set(),
    ]
    assert run.codecs == ()
    assert watch.changes[0].line().startswith("step 128: coded gradients differ too much (cosine")


def test_where_there_must_be_a_codec_bent_gradients_are_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan, costs = planned(0.05e6)
    recoding = Recoding(plan, replace(costs, coding=Coding((4,), always=True)))
    run, watch = Run(plan.codecs, BENT), CodecWatch(recoding)
    train(watch, run, range(700), 0.05e6)
    assert [step for step, _ in run.compared] == [128, 128 + 512]
    assert run.codecs == plan.codecs
    assert "links have no codec of more bits" in caplog.text


def test_a_run_that_diverged_is_no_reason_to_change_codecs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan, costs = planned(0.05e6)
    run, watch = Run(plan.codecs, Agreement(math.nan, 1.0)), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(200), 0.05e6)
    assert run.codecs == plan.codecs
    assert "gradients are not finite" in caplog.text


def test_after_more_bits_good_gradients_are_trusted_again() -> None:
    plan, costs = planned(0.05e6)
    run, watch = Run(plan.codecs, BENT), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(129), 0.05e6)
    run.agreement = GOOD
    train(watch, run, range(129, 600), 0.05e6)
    assert [step for step, _ in run.compared] == [128, 129, 257, 513]
    assert {codec.bits for codec in run.codecs} == {8}


def test_codecs_that_were_not_compared_yet_are_compared_at_once() -> None:
    plan, costs = planned(1e6)
    run, watch = Run(plan.codecs), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(140), 1e6)
    train(watch, run, range(140, 150), 0.05e6)
    change = watch.changes[0]
    assert [step for step, _ in run.compared] == [128, change.step]
    assert run.codecs == change.codecs
    assert run.link_rates == {THERE: 0.05e6, BACK: 0.05e6}
    train(watch, run, range(150, 165), 1e6)
    assert len(run.compared) == 2, "the first codecs were compared before"


def test_exact_links_are_not_compared_and_no_codecs_no_work() -> None:
    plan, costs = planned(100e6)
    run, watch = Run(()), CodecWatch(Recoding(plan, costs))
    train(watch, run, range(200), 100e6)
    none = CodecWatch(None)
    train(none, run, range(200), 1.0)
    assert (run.compared, watch.changes, none.changes, run.codecs) == ([], (), (), ())
