"""The agent: inbox, executor, throttle. The only code that runs on a device."""

from edgeweave.device.agent import Agent
from edgeweave.device.comparison import Agreement, told_products
from edgeweave.device.exchange import as_mapping, coding_names, tensor_frame
from edgeweave.device.inbox import FrameId, Inbox
from edgeweave.device.learner import Layout, Learner, SelectionCosts, layout_of
from edgeweave.device.messages import (
    COORDINATOR,
    Assignment,
    CodingProbe,
    CodingSeconds,
    Deploy,
    Emulate,
    Fault,
    Fetch,
    Greeting,
    Halt,
    Holdings,
    LinkProbe,
    LinkTimings,
    ProbeRequest,
    Profile,
    Pulse,
    Relay,
    Release,
    Replicate,
    RunStatus,
    StageStatistics,
    StateRequest,
    TraceEvent,
    UnitTimings,
    decode_message,
    encode_message,
)
from edgeweave.device.optimizer import (
    Optimizer,
    build,
    state_bytes_per_trainable_byte,
    step_bytes_per_trainable_byte,
)
from edgeweave.device.probing import probe_link
from edgeweave.device.rows import Data, Rows, SentData, SourceData, load_rows
from edgeweave.device.settings import AgentSettings
from edgeweave.device.snapshots import received_state
from edgeweave.device.timings import StageTiming, told_rates, told_timings
from edgeweave.device.whole_files import write_whole

__all__ = [
    "COORDINATOR",
    "Agent",
    "AgentSettings",
    "Agreement",
    "Assignment",
    "CodingProbe",
    "CodingSeconds",
    "Data",
    "Deploy",
    "Emulate",
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
    "Optimizer",
    "ProbeRequest",
    "Profile",
    "Pulse",
    "Relay",
    "Release",
    "Replicate",
    "Rows",
    "RunStatus",
    "SelectionCosts",
    "SentData",
    "SourceData",
    "StageStatistics",
    "StageTiming",
    "StateRequest",
    "TraceEvent",
    "UnitTimings",
    "as_mapping",
    "build",
    "coding_names",
    "decode_message",
    "encode_message",
    "layout_of",
    "load_rows",
    "probe_link",
    "received_state",
    "state_bytes_per_trainable_byte",
    "step_bytes_per_trainable_byte",
    "tensor_frame",
    "told_products",
    "told_rates",
    "told_timings",
    "write_whole",
]
