"""Made visible: a plan before it runs, a report as a picture or as a trace for Perfetto."""

from edgeweave.observe.gantt import draw_plan
from edgeweave.observe.timeline import draw_timeline
from edgeweave.observe.trace import perfetto_trace

__all__ = ["draw_plan", "draw_timeline", "perfetto_trace"]
