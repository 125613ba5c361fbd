"""How fast tensors are coded, and what others make of the same activations and gradients.

One thread. Speeds are float32 bytes that go in or come out, per second, of normal random values; a
metric is that of the slowest of `truncate`, `uniform` and `blockfloat` and of 1 MB and 8 MB.

    encode_gb_s_Nbit             N bits, rounded to nearest
    decode_gb_s_Nbit             into memory that is there
    encode_at_random_gb_s_Nbit   rounded at random, as gradients are
    encode_relu_gb_s_8bit        half of the values zero and left out (`uniform`)
    decode_relu_gb_s_8bit
    encode_gb_s_none             as it is, with a checksum
    decode_gb_s_none
    memcpy_gb_s                  `Tensor.copy_` of the same tensor, in turn with the others

The comparison trains a small network on CIFAR-10 and codes activations and gradients of its last
step. It needs `../shared/data` (or the folder named by EDGEWEAVE_DATA) and
`pip install ".[codecs]"`; what is not there is left out, and the result says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from statistics import median

import torch

from benchmarks.codec_peers import PACKAGES, compared, contestants
from benchmarks.codec_tensors import trained
from benchmarks.data import DATA
from benchmarks.harness import Result, interleaved
from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform

__all__ = ["run"]

_SEED = 0
_SIZES = {"1 MB": 1_000_000, "8 MB": 8_000_000}
_BITS = (2, 3, 4, 5, 6, 7, 8)
_BITS_AT_RANDOM = (4, 8)
_BYTES_A_SAMPLE = 16_000_000

Cases = dict[str, Callable[[], float]]


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` takes 3 turns instead of 11 and trains for 20 steps instead of 200."""
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {}
    for words, n_bytes in _SIZES.items():
        timed = interleaved(3 if quick else 11, _cases(n_bytes))
        samples |= {f"{name}, {words}": speeds for name, speeds in timed.items()}
    slowest = _slowest(samples)
    samples |= {metric: samples[case] for metric, case in slowest.items()}
    tensors = trained(n_steps=20 if quick else 200, seed=_SEED)
    rows = compared(tensors, contestants(), n_turns=1 if quick else 5)
    return Result(
        name="codec",
        quick=quick,
        metrics={metric: median(samples[metric]) for metric in slowest},
        lines=(
            *(f"{metric:>28} = {median(samples[metric]):6.2f}" for metric in slowest),
            *(row.line() for row in rows),
        ),
        samples=samples,
        settings={
            "seed": _SEED,
            "slowest": slowest,
            "compared": [asdict(row) for row in rows],
            "left_out": _left_out(),
        },
    )


def _cases(n_bytes: int) -> Cases:
    """What is timed on a tensor of ``n_bytes``: ``metric, codec`` and how to get a sample."""
    values = torch.randn(n_bytes // 4, generator=torch.Generator().manual_seed(_SEED))
    out = torch.empty_like(values)
    cases: Cases = {"memcpy_gb_s, -": lambda: _gb_per_second(lambda: out.copy_(values), n_bytes)}
    for bits in _BITS:
        for make in (truncate, uniform, blockfloat):
            _add(cases, f"gb_s_{bits}bit", values, make(bits), out)
            if bits in _BITS_AT_RANDOM:
                name = f"encode_at_random_gb_s_{bits}bit, {make(bits)}"
                cases[name] = _encoding(values, make(bits), seed=_SEED)
    _add(cases, "relu_gb_s_8bit", values.relu(), uniform(8), out)
    _add(cases, "gb_s_none", values, none(), out)
    return cases


def _add(cases: Cases, name: str, values: torch.Tensor, codec: Codec, out: torch.Tensor) -> None:
    cases[f"encode_{name}, {codec}"] = _encoding(values, codec)
    coded = encode(values, codec)
    cases[f"decode_{name}, {codec}"] = lambda: _gb_per_second(
        lambda: decode(coded, into=out), values.nbytes
    )


def _encoding(
    values: torch.Tensor, codec: Codec, *, seed: int | None = None
) -> Callable[[], float]:
    return lambda: _gb_per_second(lambda: encode(values, codec, seed=seed), values.nbytes)


def _gb_per_second(work: Callable[[], object], n_bytes: int) -> float:
    repeats = max(_BYTES_A_SAMPLE // n_bytes, 1)
    work()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return repeats * n_bytes / (time.perf_counter() - started) / 1e9


def _slowest(samples: dict[str, list[float]]) -> dict[str, str]:
    """The case with the lowest median, for each metric."""
    slowest: dict[str, str] = {}
    for case, speeds in samples.items():
        metric = case.split(",")[0]
        if metric not in slowest or median(speeds) < median(samples[slowest[metric]]):
            slowest[metric] = case
    return slowest


def _left_out() -> list[str]:
    missing = [f"{package} is not installed" for package in PACKAGES if find_spec(package) is None]
    return missing if DATA.exists() else [*missing, f"no real data in {DATA}"]
