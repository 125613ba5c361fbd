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
from edgeweave.program.operators import DTYPES
from edgeweave.program.stage import Moment, StageProgram, StageResult, made_up
from edgeweave.program.units import is_external
from edgeweave.program.versions import VersionedStage, Weights

__all__ = [
    "DTYPES",
    "Answer",
    "Captured",
    "CutBytes",
    "Examine",
    "Inference",
    "InputBytes",
    "LossFunction",
    "Moment",
    "Program",
    "Size",
    "SkipBytes",
    "StageProgram",
    "StageResult",
    "StateSpec",
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
    "has_batch_norm",
    "input_bytes",
    "is_external",
    "made_up",
    "result_bytes",
    "shared_parameters",
    "skip_bytes",
    "state_bytes",
    "unit_bytes",
    "value_bytes",
    "ways",
    "without_outputs",
]
