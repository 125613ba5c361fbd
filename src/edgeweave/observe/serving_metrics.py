"""What an endpoint did, as Prometheus reads it. Needs the ``metrics`` extra (prometheus-client)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from edgeweave.serving import Endpoint

__all__ = ["metrics_text"]


def metrics_text(endpoint: Endpoint) -> Callable[[], tuple[bytes, str]] | None:
    """A function that makes the text of ``/metrics`` and its media type; None without the extra.

    Each call asks the devices that serve what they did.
    """
    try:
        from prometheus_client import (  # noqa: PLC0415
            CONTENT_TYPE_LATEST,
            CollectorRegistry,
            generate_latest,
        )
    except ImportError:
        return None
    registry = CollectorRegistry()
    registry.register(_Collector(endpoint))
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)


class _Collector:
    """Reads the endpoint whenever Prometheus asks."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def describe(self) -> list[Any]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            SummaryMetricFamily,
        )

        report, desk = self._endpoint.report(), self._endpoint.statistics()
        outcomes = CounterMetricFamily(
            "edgeweave_requests", "Requests by what became of them.", labels=["outcome"]
        )
        outcomes.add_metric(["answered"], report.answered)
        outcomes.add_metric(["refused"], report.refused)
        outcomes.add_metric(["expired"], report.expired)
        outcomes.add_metric(["turned_away"], desk.turned_away)
        yield outcomes
        yield CounterMetricFamily(
            "edgeweave_resent_requests", "Sent again after a device was lost.", report.resent
        )
        yield CounterMetricFamily(
            "edgeweave_plan_changes", "Plans the model was served by.", len(report.changes)
        )
        yield GaugeMetricFamily("edgeweave_open_requests", "Accepted, not answered.", desk.open)
        yield GaugeMetricFamily("edgeweave_waiting_requests", "Of these, not sent.", desk.waiting)
        yield GaugeMetricFamily(
            "edgeweave_ready", "1 if requests can be computed now.", self._endpoint.is_ready
        )
        yield SummaryMetricFamily(
            "edgeweave_request_seconds",
            "From asking to the answer.",
            count_value=report.answered,
            sum_value=desk.latency_seconds,
        )
        quantile = GaugeMetricFamily(
            "edgeweave_recent_request_seconds",
            "Of the last ten thousand answers.",
            labels=["quantile"],
        )
        if report.latency is not None:
            quantile.add_metric(["0.5"], report.latency.p50_seconds)
            quantile.add_metric(["0.95"], report.latency.p95_seconds)
            quantile.add_metric(["0.99"], report.latency.p99_seconds)
        yield quantile
        for name, text, field in (
            ("edgeweave_device_requests", "Computed by a device.", "requests"),
            ("edgeweave_device_cpu_seconds", "CPU seconds of a device.", "cpu_seconds"),
            ("edgeweave_device_compute_seconds", "Spent computing by a device.", "compute_seconds"),
            ("edgeweave_device_joules", "Energy of a device, estimated from its CPU.", "joules"),
            ("edgeweave_device_received_bytes", "Received by a device.", "bytes_in"),
            ("edgeweave_device_sent_bytes", "Sent by a device.", "bytes_out"),
        ):
            family = CounterMetricFamily(name, text, labels=["device"])
            for device in report.devices:
                family.add_metric([device.device], getattr(device, field))
            yield family
