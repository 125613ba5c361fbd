"""The picture: which steps it shows, and that it is one."""

from __future__ import annotations

import sys

import pytest

from edgeweave.core.errors import ConfigError
from edgeweave.device import TraceEvent
from edgeweave.observe import draw_timeline
from edgeweave.observe.timeline import last_full_steps
from tests.observe.reports import report, step_events, three_steps


def test_the_last_steps_that_are_full_are_drawn() -> None:
    window = last_full_steps(three_steps())
    assert window.steps == (0, 1)
    assert window.start_seconds == 0.0
    assert window.stop_seconds == pytest.approx(0.19)


def test_fewer_steps_are_drawn_if_there_are_fewer() -> None:
    assert last_full_steps(report(*step_events(5))).steps == (5,)


def test_steps_that_do_not_follow_each_other_are_not_drawn_together() -> None:
    assert last_full_steps(report(*step_events(1), *step_events(3))).steps == (3,)


def test_a_step_whose_beginning_is_no_longer_recorded_does_not_count() -> None:
    cut_off = step_events(0)[2:]
    assert last_full_steps(report(*cut_off, *step_events(1))).steps == (1,)


def test_without_a_full_step_there_is_no_picture() -> None:
    with pytest.raises(ConfigError, match=r"needs one full step on every device \(the report has"):
        draw_timeline(report(TraceEvent("idle", -1, -1, 0.0, 1.0)))


@pytest.mark.parametrize("n_steps", [1, 2])
def test_the_picture_is_a_png(n_steps: int) -> None:
    assert draw_timeline(three_steps(), n_steps=n_steps).startswith(b"\x89PNG\r\n")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'edgeweave\[plot\]'"):
        draw_timeline(three_steps())
