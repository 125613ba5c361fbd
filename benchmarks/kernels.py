"""Other ways to compute a served stage: ``torch.compile`` and ONNX Runtime beside ours.

    exact      the captured program, operator by operator: the model's bits
    fast       the same after ``kernels="fast"``: BatchNorm folded, channels-last, weights laid out
               once; no compiler
    compiled   torch.compile (inductor, weights frozen): needs a C++ compiler where it runs
    onnx       ONNX Runtime, exported by torch: another executor, and no operator but ONNX's

One sample a request, one thread, each network cut in two in the middle of its units; the CPU
seconds of both stages, a call after another, each way in turn. Not among the claims, since it needs
packages that Edgeweave does not:

    pip install onnx onnxruntime onnxscript
    python -m benchmarks.kernels [--quick] [NETWORK ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from benchmarks.harness import interleaved
from benchmarks.resnet import resnet18
from edgeweave.program import Inference, Program, StageProgram, capture_inference, cut, faster
from edgeweave.program.interpret import Interpreter
from edgeweave.train.models import lenet

__all__ = ["main"]

Tensors = dict[str, torch.Tensor]
Stage = Callable[[Tensors], Tensors]

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MobileNetV2 96x96": (
        lambda: MobileNetV2ForImageClassification(MobileNetV2Config(image_size=96)),
        (3, 96, 96),
    ),
    "ResNet-18 32x32": (lambda: resnet18(0), (3, 32, 32)),
    "LeNet 28x28": (lenet, (1, 28, 28)),
}
_CALLS, _WARM_UP = 20, 5


@dataclass(frozen=True, slots=True)
class _Way:
    """How the stages of a network are computed, and what it took to get there."""

    stages: Sequence[Stage]
    made_seconds: float


def main(arguments: Sequence[str]) -> int:
    """Print a table; ``--quick`` measures three turns instead of fifteen."""
    n_turns = 3 if "--quick" in arguments else 15
    wanted = {each.lower() for each in arguments} - {"--quick"}
    torch.set_num_threads(1)
    print(
        "CPU seconds of exact / CPU seconds of the way; in brackets, seconds to make its two stages"
    )
    for name, (build, shape) in _NETWORKS.items():
        if wanted and name.split()[0].lower() not in wanted:
            continue
        torch.manual_seed(0)
        example = torch.randn(1, *shape)
        inference = capture_inference(build().eval(), example)
        with tempfile.TemporaryDirectory() as folder:
            line = _line(_ways(inference, example, Path(folder)), example, n_turns)
            print(f"{name}: {line}", flush=True)
    return 0


def _ways(inference: Inference, example: torch.Tensor, folder: Path) -> dict[str, _Way]:
    """Those that can be had here."""
    ways = {
        "exact": _made(inference, example, _ours),
        "fast": _made(faster(inference), example, _ours),
    }
    if which("g++") or which("clang++"):
        ways["compiled"] = _made(inference, example, _compiled)
    if all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        ways["onnx"] = _made(
            inference, example, lambda stage, state, inputs: _onnx(stage, state, inputs, folder)
        )
    return ways


def _made(
    inference: Inference,
    example: torch.Tensor,
    make: Callable[[Program, Mapping[str, torch.Tensor], Tensors], Stage],
) -> _Way:
    """Both stages, each made for what the one before hands on."""
    units = inference.program.unit_numbers
    stages: list[Stage] = []
    values: Tensors = {"input:0": example}
    began = time.perf_counter()
    for program in cut(inference.program, [units[len(units) // 2]]):
        state = {spec.name: inference.state[spec.name].detach() for spec in program.state}
        inputs = {value.name: values[value.name] for value in program.inputs}
        stages.append(make(program, state, inputs))
        values |= stages[-1](inputs)
    return _Way(stages, time.perf_counter() - began)


def _line(ways: Mapping[str, _Way], example: torch.Tensor, n_turns: int) -> str:
    expected = _answer(ways["exact"], example)
    times = interleaved(
        n_turns, {name: partial(_seconds, way, example) for name, way in ways.items()}
    )
    parts = []
    for name, way in ways.items():
        error = float((_answer(way, example) - expected).abs().max() / expected.abs().max())
        gains = [a / b for a, b in zip(times["exact"], times[name], strict=True)]
        parts.append(
            f"{name} {1e3 * median(times[name]):.2f} ms, {median(gains):.2f} "
            f"({min(gains):.2f} to {max(gains):.2f}) [{way.made_seconds:.1f} s, error {error:.0e}]"
        )
    return "; ".join(parts)


def _seconds(way: _Way, example: torch.Tensor) -> float:
    """CPU seconds of a request in both stages: the median of some calls."""
    taken = []
    for _ in range(_WARM_UP + _CALLS):
        began = time.process_time()
        _answer(way, example)
        taken.append(time.process_time() - began)
    return median(taken[_WARM_UP:])


def _answer(way: _Way, example: torch.Tensor) -> torch.Tensor:
    values: Tensors = {"input:0": example}
    with torch.inference_mode():
        for stage in way.stages:
            values = stage(values)
    (answer,) = values.values()
    return answer


def _ours(program: Program, state: Mapping[str, torch.Tensor], _inputs: Tensors) -> Stage:
    stage = StageProgram(program, state)
    return lambda values: stage.evaluate(values).outputs


def _traced(program: Program, state: Mapping[str, torch.Tensor], inputs: Tensors) -> Any:
    """The stage as a graph of torch, which compilers and exporters take."""
    interpreter = Interpreter(program, state, device=torch.device("cpu"))
    names = list(inputs)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        found = interpreter.run(given, tensors[0].shape[0], wanted=program.outputs)
        return tuple(found[name] for name in program.outputs)

    with torch.no_grad():
        graph = make_fx(run)(*inputs.values()).eval()
    for name, value in list(vars(graph).items()):
        if isinstance(value, torch.Tensor):  # what is no buffer is not frozen
            delattr(graph, name)
            graph.register_buffer(name, value)
    return graph


def _compiled(program: Program, state: Mapping[str, torch.Tensor], inputs: Tensors) -> Stage:
    graph = _traced(program, state, inputs)
    compiled: Any = torch.compile(graph, options={"freezing": True})
    return _named(program, list(inputs), lambda tensors: compiled(*tensors))


def _onnx(
    program: Program, state: Mapping[str, torch.Tensor], inputs: Tensors, folder: Path
) -> Stage:
    runtime = import_module("onnxruntime")
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    torch.onnx.export(
        _traced(program, state, inputs), tuple(inputs.values()), path, dynamo=True, verbose=False
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        given = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return _named(program, list(inputs), run)


def _named(
    program: Program,
    names: Sequence[str],
    run: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
) -> Stage:
    """From names to places and back."""
    return lambda values: dict(
        zip(program.outputs, run([values[name] for name in names]), strict=True)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
