from __future__ import annotations

from edgeweave import plan


def test_the_package_hands_on_these_names_in_order() -> None:
    assert plan.__all__ == [
        "SCHEDULES",
        "Action",
        "Agenda",
        "Backward",
        "Caution",
        "Costs",
        "Cut",
        "Decision",
        "Departure",
        "DeviceCosts",
        "DeviceShare",
        "Event",
        "Explanation",
        "Feed",
        "Forward",
        "LeftOut",
        "Link",
        "Monitor",
        "Plan",
        "PlannedBatch",
        "Reduce",
        "Stage",
        "StageSeconds",
        "Timeline",
        "UnitFacts",
        "Update",
        "actions",
        "best_microbatching",
        "best_plans",
        "explain",
        "from_json",
        "in_flight",
        "may_swap",
        "microbatch_sizes",
        "partition",
        "period_seconds_at_least",
        "simulate",
        "stage_memory_bytes",
        "to_json",
        "window",
    ]
    assert all(hasattr(plan, name) for name in plan.__all__)
