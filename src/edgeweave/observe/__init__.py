"""Reports made visible: a trace for Perfetto, a picture of the last steps."""

from edgeweave.observe.timeline import draw_timeline
from edgeweave.observe.trace import perfetto_trace

__all__ = ["draw_timeline", "perfetto_trace"]
