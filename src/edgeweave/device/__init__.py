"""The agent: inbox, executor, throttle. The only code that runs on a device."""

from edgeweave.device.agent import Agent
from edgeweave.device.frames.inbox import FrameId, Inbox
from edgeweave.device.frames.outbox import Outboxes
from edgeweave.device.frames.scalars import metrics_in, told_hyperparameters
from edgeweave.device.messages import (
    COORDINATOR,
    Emulate,
    Fault,
    Greeting,
    Place,
    Pulse,
    Relay,
    Release,
    RunStatus,
    ServiceLevel,
    StateRequest,
    decode_message,
    encode_message,
)
from edgeweave.device.optimizer import (
    Optimizer,
    build,
    state_bytes_per_trainable_byte,
    step_bytes_per_trainable_byte,
)
from edgeweave.device.peers.learner import Layout, Learner, SelectionCosts, layout_of
from edgeweave.device.peers.messages import (
    Admit,
    BeginGossip,
    Enrol,
    Enrolled,
    ModelRequest,
    PeerStatus,
    StopGossip,
)
from edgeweave.device.peers.rows import Data, Rows, SentData, SourceData, load_rows
from edgeweave.device.probes.links import probe_link
from edgeweave.device.probes.messages import (
    CodingProbe,
    CodingSeconds,
    LinkProbe,
    LinkTimings,
    ProbeRequest,
    Profile,
    UnitTimings,
)
from edgeweave.device.serving.messages import Retire, Serve, Served, ServingStatistics
from edgeweave.device.settings import AgentSettings
from edgeweave.device.slices.messages import (
    DeploySlice,
    MemberMoved,
    SenderStatistics,
    SliceAssignment,
    SliceStatistics,
)
from edgeweave.device.slices.roster import Roster
from edgeweave.device.stages.comparison import Agreement, told_products
from edgeweave.device.stages.exchange import as_mapping, coding_names, tensor_frame
from edgeweave.device.stages.messages import (
    Assignment,
    Deploy,
    Fetch,
    Halt,
    Holdings,
    Replicate,
    StageStatistics,
    TraceEvent,
)
from edgeweave.device.stages.snapshots import received_state
from edgeweave.device.timings import StageTiming, told_rates, told_replicas, told_timings
from edgeweave.device.whole_files import write_whole

__all__ = [
    "Admit",
    "COORDINATOR",
    "Agent",
    "AgentSettings",
    "Agreement",
    "Assignment",
    "BeginGossip",
    "CodingProbe",
    "CodingSeconds",
    "Data",
    "Deploy",
    "DeploySlice",
    "Emulate",
    "Enrol",
    "Enrolled",
    "Fault",
    "Fetch",
    "FrameId",
    "Greeting",
    "Halt",
    "Holdings",
    "Inbox",
    "Layout",
    "Learner",
    "LinkProbe",
    "LinkTimings",
    "MemberMoved",
    "ModelRequest",
    "Optimizer",
    "Outboxes",
    "Place",
    "PeerStatus",
    "ProbeRequest",
    "Profile",
    "Pulse",
    "Relay",
    "Release",
    "Replicate",
    "Retire",
    "RunStatus",
    "ServiceLevel",
    "Serve",
    "Served",
    "ServingStatistics",
    "Roster",
    "Rows",
    "SelectionCosts",
    "SenderStatistics",
    "SentData",
    "SliceAssignment",
    "SliceStatistics",
    "SourceData",
    "StageStatistics",
    "StageTiming",
    "StateRequest",
    "StopGossip",
    "TraceEvent",
    "UnitTimings",
    "as_mapping",
    "build",
    "coding_names",
    "decode_message",
    "encode_message",
    "layout_of",
    "load_rows",
    "metrics_in",
    "probe_link",
    "received_state",
    "state_bytes_per_trainable_byte",
    "step_bytes_per_trainable_byte",
    "tensor_frame",
    "told_hyperparameters",
    "told_products",
    "told_rates",
    "told_replicas",
    "told_timings",
    "write_whole",
]
