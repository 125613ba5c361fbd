"""Where to cut a model and on whom to run it: costs in, a plan out."""

from edgeweave.plan.bound import period_seconds_at_least
from edgeweave.plan.codec_choice import choose_codecs
from edgeweave.plan.coding import LinkCodec
from edgeweave.plan.costs import (
    Costs,
    Cut,
    Deviation,
    DeviceCosts,
    Feed,
    Skip,
    StageSeconds,
    UnitFacts,
)
from edgeweave.plan.decision import Caution, Decision, Departure
from edgeweave.plan.delivery import (
    Delivery,
    DeliveryChoice,
    DeliveryTrial,
    StepSeen,
    choose_delivery,
)
from edgeweave.plan.explain import explain
from edgeweave.plan.explanation import DeviceShare, Explanation, LeftOut
from edgeweave.plan.links import UNSEEN_LINK, Coding, Link
from edgeweave.plan.mapping import fitness, map_members, traffic
from edgeweave.plan.memory import stage_memory_bytes
from edgeweave.plan.microbatching import (
    PlannedBatch,
    TriedSize,
    best_microbatching,
    microbatch_sizes,
    worthwhile_sizes,
)
from edgeweave.plan.partition import best_plans, partition
from edgeweave.plan.reception import LEAST_SHARE, Reception
from edgeweave.plan.recoding import Recoding
from edgeweave.plan.replan import Monitor
from edgeweave.plan.replication import Replication
from edgeweave.plan.schedule import (
    ASYNCHRONOUS,
    SCHEDULE_NAMES,
    SCHEDULES,
    Action,
    Agenda,
    Backward,
    Forward,
    Reduce,
    Update,
    actions,
    check_weight_aggregation,
    in_flight,
    is_flushed,
    may_swap,
    window,
)
from edgeweave.plan.serving import (
    Objective,
    ServingPlan,
    answer_times,
    period_bounds,
    repredicted,
    serving_plan,
    serving_plans,
)
from edgeweave.plan.serving_watch import ServingWatch
from edgeweave.plan.simulate import Event, Timeline, simulate
from edgeweave.plan.sizes import Sizes
from edgeweave.plan.slice_costs import SliceCosts, SliceModel
from edgeweave.plan.slice_explanation import SliceExplanation, SliceShare, explain_slices
from edgeweave.plan.slice_plan import SlicePlan
from edgeweave.plan.slice_search import choose_slices, group_choices, layer_units
from edgeweave.plan.stages import Plan, Stage, from_json, to_json
from edgeweave.plan.stream import Due, Learn, Stream, older_versions
from edgeweave.plan.takeover import taken_over
from edgeweave.plan.trial import TRIAL_STEPS, Trial
from edgeweave.plan.uncertainty import Interval, drawn_costs

__all__ = [
    "ASYNCHRONOUS",
    "LEAST_SHARE",
    "SCHEDULES",
    "SCHEDULE_NAMES",
    "TRIAL_STEPS",
    "UNSEEN_LINK",
    "Action",
    "Agenda",
    "Backward",
    "Caution",
    "Coding",
    "Costs",
    "Cut",
    "Decision",
    "Delivery",
    "DeliveryChoice",
    "DeliveryTrial",
    "Departure",
    "Deviation",
    "DeviceCosts",
    "DeviceShare",
    "Due",
    "Event",
    "Explanation",
    "Feed",
    "Forward",
    "Interval",
    "Learn",
    "LeftOut",
    "Link",
    "LinkCodec",
    "Monitor",
    "Objective",
    "Plan",
    "PlannedBatch",
    "Reception",
    "Recoding",
    "Reduce",
    "Replication",
    "ServingPlan",
    "ServingWatch",
    "Sizes",
    "Skip",
    "SliceCosts",
    "SliceExplanation",
    "SliceModel",
    "SlicePlan",
    "SliceShare",
    "Stage",
    "StageSeconds",
    "StepSeen",
    "Stream",
    "Timeline",
    "Trial",
    "TriedSize",
    "UnitFacts",
    "Update",
    "actions",
    "answer_times",
    "best_microbatching",
    "best_plans",
    "check_weight_aggregation",
    "choose_codecs",
    "choose_delivery",
    "choose_slices",
    "drawn_costs",
    "explain",
    "explain_slices",
    "fitness",
    "from_json",
    "group_choices",
    "in_flight",
    "is_flushed",
    "layer_units",
    "map_members",
    "may_swap",
    "microbatch_sizes",
    "older_versions",
    "partition",
    "period_bounds",
    "period_seconds_at_least",
    "repredicted",
    "serving_plan",
    "serving_plans",
    "simulate",
    "stage_memory_bytes",
    "taken_over",
    "to_json",
    "traffic",
    "window",
    "worthwhile_sizes",
]
