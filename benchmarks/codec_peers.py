"""Other people's codecs on the same tensors: ratio, error and speed.

    zstd, lz4      lossless, of the float32 bytes
    blosc2         mantissas cut to as many bits as named, bits transposed, then zstd or lz4
    zfp            fixed rate, of the tensor with samples and channels as one dimension
    ours + zstd    our bytes through a lossless last stage
    ours + zlib    the same with what Python itself brings: Huffman codes only

Each is asked for one thread and its fast settings. The packages are an extra, `codecs`; what is not
installed is left out.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch

from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform

__all__ = ["PACKAGES", "Contestant", "Row", "compared", "contestants", "table"]

PACKAGES = ("blosc2", "lz4", "zfpy", "zstandard")

_OURS = (none(), *(make(bits) for bits in (8, 4) for make in (uniform, truncate, blockfloat)))
_STAGED = (uniform(8), truncate(8), uniform(4), blockfloat(4))
_BLOSC_MANTISSA_BITS = (7, 3)
_ZFP_RATES = (8, 4)


class Contestant(NamedTuple):
    """A way to code a tensor."""

    name: str
    encode: Callable[[torch.Tensor], Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    """From what ``encode`` gave, and the tensor for its shape only."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one contestant made of one tensor."""

    contestant: str
    tensor: str
    bits: float
    """A value, everything counted."""
    error: float
    """Root mean square, over that of the values."""
    encode_mb_per_second: float
    decode_mb_per_second: float

    def line(self) -> str:
        """For people."""
        return (
            f"{self.contestant:>29}  {self.tensor:24}  {self.bits:5.2f} bits  {self.error:.1e}  "
            f"{self.encode_mb_per_second:6.0f} and {self.decode_mb_per_second:6.0f} MB/s"
        )


def contestants() -> list[Contestant]:
    """Ours, and of the others those that are installed."""
    found = [_ours(codec) for codec in _OURS]
    found += [_staged(codec, "zlib", _huffman, zlib.decompress) for codec in _STAGED]
    makers = {"zstandard": _with_zstd, "lz4": _with_lz4, "blosc2": _with_blosc2, "zfpy": _with_zfp}
    for package, make in makers.items():
        if find_spec(package) is not None:
            found += make()
    return found


def compared(
    tensors: Mapping[str, torch.Tensor], rivals: list[Contestant], *, n_turns: int
) -> list[Row]:
    """Every contestant on every tensor."""
    return [_row(rival, name, each, n_turns) for name, each in tensors.items() for rival in rivals]


def table(rows: list[Mapping[str, Any]]) -> str:
    """Bits and error of every tensor, and the slowest speeds, as Markdown."""
    tensors = list(dict.fromkeys(row["tensor"] for row in rows))
    lines = [
        f"| | {' | '.join(tensors)} | MB/s in | MB/s out |",
        "|---" * (len(tensors) + 3) + "|",
    ]
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        own = {row["tensor"]: row for row in rows if row["contestant"] == contestant}
        cells = [f"{own[name]['bits']:.2f}, {_percent(own[name]['error'])}" for name in tensors]
        speeds = [
            f"{min(row[key] for row in own.values()):.0f}"
            for key in ("encode_mb_per_second", "decode_mb_per_second")
        ]
        lines.append(f"| {' | '.join([contestant, *cells, *speeds])} |")
    return "\n".join(lines)


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if error else "exact"


def _row(rival: Contestant, name: str, tensor: torch.Tensor, n_turns: int) -> Row:
    coded = rival.encode(tensor)
    back = rival.decode(coded, tensor)
    error = (back - tensor).double().square().mean() / tensor.double().square().mean()
    megabytes = tensor.nbytes / 1e6
    return Row(
        rival.name,
        name,
        bits=8 * len(coded) / tensor.numel(),
        error=float(error.sqrt()),
        encode_mb_per_second=megabytes / _seconds(lambda: rival.encode(tensor), n_turns),
        decode_mb_per_second=megabytes / _seconds(lambda: rival.decode(coded, tensor), n_turns),
    )


def _seconds(work: Callable[[], Any], n_turns: int) -> float:
    taken = []
    for _ in range(n_turns):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return median(taken)


def _name(codec: Codec) -> str:
    return f"ours, {codec.name}({codec.bits})" if codec.bits else "ours, none"


def _ours(codec: Codec) -> Contestant:
    return Contestant(
        _name(codec), lambda tensor: encode(tensor, codec), lambda data, _: decode(data)
    )


def _staged(
    codec: Codec, stage: str, shrink: Callable[[Any], bytes], grow: Callable[[bytes], bytes]
) -> Contestant:
    return Contestant(
        f"{_name(codec)} + {stage}",
        lambda tensor: shrink(encode(tensor, codec)),
        lambda data, _: decode(grow(data)),
    )


def _huffman(data: memoryview) -> bytes:
    deflate = zlib.compressobj(1, strategy=zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(data) + deflate.flush()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _tensor(data: bytes, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(like.shape)


def _with_zstd() -> list[Contestant]:
    zstd = import_module("zstandard")
    plain = Contestant(
        "zstd 1",
        lambda tensor: zstd.compress(_bytes(tensor), 1),
        lambda data, like: _tensor(zstd.decompress(data), like),
    )
    staged = [
        _staged(codec, "zstd 1", lambda data: zstd.compress(data, 1), zstd.decompress)
        for codec in _STAGED
    ]
    return [*staged, plain]


def _with_lz4() -> list[Contestant]:
    frame = import_module("lz4.frame")
    return [
        Contestant(
            "lz4",
            lambda tensor: frame.compress(_bytes(tensor)),
            lambda data, like: _tensor(frame.decompress(data), like),
        )
    ]


def _with_blosc2() -> list[Contestant]:
    return [_blosc2(bits, codec) for codec in ("LZ4", "ZSTD") for bits in _BLOSC_MANTISSA_BITS]


def _blosc2(mantissa_bits: int, codec: str) -> Contestant:
    blosc2 = import_module("blosc2")

    def encode_(tensor: torch.Tensor) -> bytes:
        return bytes(
            blosc2.compress2(
                tensor.numpy(),
                codec=blosc2.Codec[codec],
                clevel=1,
                nthreads=1,
                typesize=4,
                filters=[blosc2.Filter.TRUNC_PREC, blosc2.Filter.BITSHUFFLE],
                filters_meta=[mantissa_bits, 0],
            )
        )

    return Contestant(
        f"blosc2, {mantissa_bits} mantissa bits, {codec.lower()}",
        encode_,
        lambda data, like: _tensor(blosc2.decompress2(data), like),
    )


def _with_zfp() -> list[Contestant]:
    return [_zfp(rate) for rate in _ZFP_RATES]


def _zfp(rate: int) -> Contestant:
    zfpy = import_module("zfpy")
    return Contestant(
        f"zfp, {rate} bits",
        lambda tensor: zfpy.compress_numpy(tensor.flatten(0, 1).numpy(), rate=float(rate)),
        lambda data, like: torch.from_numpy(zfpy.decompress_numpy(data)).view(like.shape),
    )
