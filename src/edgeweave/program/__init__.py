"""Any ``nn.Module`` as data: capture, cut, run, save. Values in, values out."""

from edgeweave.program.capture import Captured, LossFunction, capture, flatten_inputs
from edgeweave.program.check import check, value_bytes
from edgeweave.program.cut import Way, cut, shared_parameters, ways, without_outputs
from edgeweave.program.evaluation import evaluation, has_batch_norm
from edgeweave.program.faster import faster
from edgeweave.program.footprint import (
    CutBytes,
    InputBytes,
    SkipBytes,
    UnitBytes,
    cut_bytes,
    input_bytes,
    result_bytes,
    skip_bytes,
    state_bytes,
    unit_bytes,
)
from edgeweave.program.format import (
    Examine,
    decode,
    decode_program,
    decode_state,
    encode,
    encode_program,
    encode_state,
)
from edgeweave.program.graph import Program, Size, StateSpec, Value
from edgeweave.program.inference import Answer, Inference, capture_inference
from edgeweave.program.interpret import Interpreter
from edgeweave.program.member import Member, Routes
from edgeweave.program.operators import DTYPES
from edgeweave.program.part import part_for
from edgeweave.program.shares import Mode
from edgeweave.program.slice import Group, Sliced, slice_program
from edgeweave.program.sliced_state import (
    gather_entries,
    gather_state,
    slice_entries,
    slice_state,
)
from edgeweave.program.stage import Moment, StageProgram, StageResult, made_up
from edgeweave.program.transfers import Segment, Shard, Transfer
from edgeweave.program.units import is_external
from edgeweave.program.versions import VersionedStage, Weights

__all__ = [
    "DTYPES",
    "Answer",
    "Captured",
    "CutBytes",
    "Examine",
    "Inference",
    "Group",
    "InputBytes",
    "Interpreter",
    "LossFunction",
    "Member",
    "Mode",
    "Moment",
    "Program",
    "Size",
    "Routes",
    "Segment",
    "Shard",
    "SkipBytes",
    "Sliced",
    "StageProgram",
    "StageResult",
    "StateSpec",
    "Transfer",
    "UnitBytes",
    "Value",
    "VersionedStage",
    "Way",
    "Weights",
    "capture",
    "capture_inference",
    "check",
    "cut",
    "cut_bytes",
    "decode",
    "decode_program",
    "decode_state",
    "encode",
    "encode_program",
    "encode_state",
    "evaluation",
    "faster",
    "flatten_inputs",
    "gather_entries",
    "gather_state",
    "has_batch_norm",
    "input_bytes",
    "is_external",
    "made_up",
    "result_bytes",
    "part_for",
    "shared_parameters",
    "skip_bytes",
    "slice_entries",
    "slice_program",
    "slice_state",
    "state_bytes",
    "unit_bytes",
    "value_bytes",
    "ways",
    "without_outputs",
]
