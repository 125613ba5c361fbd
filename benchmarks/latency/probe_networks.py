"""The networks every device is probed with: ``python -m benchmarks.latency.probe_networks``.

Writes their programs, without weights, to ``src/edgeweave/predict/probe.json.gz``. Together they
have every family of operators that ``edgeweave.predict.features`` tells apart, in sizes from few
channels on many positions to many channels on few. They come in order of what they tell: a device
that is too slow for all of them runs the first. Nothing in them is meant to learn anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import edgeweave.predict
from edgeweave.predict.probe import ProbeProgram, encode_probe_programs
from edgeweave.program import capture

__all__ = ["FILE", "NETWORKS", "ProbeNetwork", "probe_file"]

FILE = Path(edgeweave.predict.__file__).parent / "probe.json.gz"

_CLASSES = 10


@dataclass(frozen=True, slots=True)
class ProbeNetwork:
    """A network, and what it takes: floats of ``shape``, or ``shape`` words below ``n_words``."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    microbatch_size: int
    n_words: int | None = None


class _Attention(nn.Module):
    """Self-attention of four heads, one matrix for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        parts = self.inputs(x).view(batch, steps, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        joined: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, steps, width))
        return joined


class _Residual(nn.Module):
    """What goes in, added to what comes out."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


class _Beside(nn.Module):
    """Branches side by side, their channels one after another."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class _Excite(nn.Module):
    """Scale channels by what two small convolutions make of their means (SENet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(functional.relu(self.down(mean))))


class _Shuffle(nn.Module):
    """Mix the channels of two groups (ShuffleNet)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        halves = x.view(batch, 2, channels // 2, height, width)
        return halves.permute(0, 2, 1, 3, 4).reshape(batch, channels, height, width)


class _Recurrent(nn.Module):
    """An LSTM and a GRU on words; the last step goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 48)
        self.lstm = nn.LSTM(48, 64, batch_first=True)
        self.gru = nn.GRU(64, 96, batch_first=True)
        self.last = nn.Linear(96, _CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        steps, _ = self.lstm(self.words(words))
        more, _ = self.gru(steps)
        return functional.log_softmax(self.last(more[:, -1]), dim=1)


class _Gate(nn.Module):
    """Soft attention over steps: exponentials, logarithms, roots and a weighted sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.score(x), dim=1)
        spread = torch.sqrt(torch.exp(torch.tanh(x)) + 1.0)
        return (weights * torch.log(spread)).sum(dim=1)


def _convolution(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _CLASSES)]


def _plain() -> nn.Module:
    """Convolutions as most networks have them."""
    return nn.Sequential(
        *_convolution(3, 16),
        *_convolution(16, 32, stride=2),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 128, 1),
        *_convolution(128, 128, stride=2),
        *_head(128),
    )


def _transformer() -> nn.Module:
    """Two blocks on words."""
    blocks = [
        layer
        for _ in range(2)
        for layer in (
            _Residual(nn.LayerNorm(96), _Attention(96)),
            _Residual(nn.LayerNorm(96), nn.Linear(96, 256), nn.GELU(), nn.Linear(256, 96)),
        )
    ]
    return nn.Sequential(nn.Embedding(1000, 96), *blocks, nn.Dropout(0.1), _Gate(96), _out(96))


def _out(width: int) -> nn.Module:
    return nn.Linear(width, _CLASSES)


def _mobile() -> nn.Module:
    """Pointwise and depthwise convolutions, as phones have them."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        *_convolution(16, 64, 1),
        *_convolution(64, 64, 3, groups=64),
        _Excite(64),
        nn.Conv2d(64, 24, 1, bias=False),
        nn.BatchNorm2d(24),
        *_convolution(24, 96, 1),
        *_convolution(96, 96, 5, stride=2, groups=96),
        _Residual(nn.Conv2d(96, 96, 1), nn.ReLU6()),
        *_head(96),
    )


def _linear() -> nn.Module:
    """Linear layers of several widths."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(512, 512),
        nn.Tanh(),
        nn.LayerNorm(512),
        nn.Linear(512, 128),
        nn.Sigmoid(),
        nn.Linear(128, 32),
        nn.ReLU(),
        _out(32),
    )


def _deep() -> nn.Module:
    """Many channels on few positions: weights rather than data."""
    return nn.Sequential(
        *_convolution(64, 256, 1),
        *_convolution(256, 256, stride=2),
        _Residual(*_convolution(256, 256)),
        *_convolution(256, 512, 1, stride=2),
        *_convolution(512, 128),
        nn.Conv2d(128, 512, 1),
        *_head(512),
    )


def _wide() -> nn.Module:
    """Large kernels on many positions, with padding, pooling and branches."""
    return nn.Sequential(
        nn.ZeroPad2d(2),
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        _Beside(nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 7, padding=3)),
        nn.LeakyReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(24, 8, 1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        *_head(4),
    )


def _elementwise() -> nn.Module:
    """Little to multiply, much to move."""
    return nn.Sequential(
        nn.Conv2d(2, 24, 1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        _Residual(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.Hardtanh()),
        nn.SiLU(),
        nn.Conv2d(24, 8, 1),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, 16, 1, stride=2),
        nn.GroupNorm(4, 16),
        nn.ELU(),
        *_head(16),
    )


def _grouped() -> nn.Module:
    """Grouped convolutions, group norm, channels in another order."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, padding=1, groups=2),
        _Shuffle(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1, groups=8),
        nn.GroupNorm(8, 64),
        nn.Mish(),
        _Shuffle(),
        nn.Conv2d(64, 128, 1, groups=4),
        *_head(128),
    )


def _signal() -> nn.Module:
    """One dimension: sensors and sound."""
    return nn.Sequential(
        nn.Conv1d(6, 32, 9, padding=4),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2),
        nn.Softplus(),
        nn.AvgPool1d(2),
        nn.Conv1d(64, 64, 3, padding=1, groups=64),
        nn.Conv1d(64, 96, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(96, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.Softmax(dim=1),
        _out(1024),
    )


def _broad() -> nn.Module:
    """Linear layers on many steps, as large as fill a device."""
    perceptrons = [
        _Residual(nn.LayerNorm(256), nn.Linear(256, 768), nn.GELU(), nn.Linear(768, 256))
        for _ in range(2)
    ]
    return nn.Sequential(nn.Linear(64, 256), *perceptrons, _Attention(256), _Gate(256), _out(256))


def _dense() -> nn.Module:
    """Convolutions that fill a device, and windows without padding."""
    return nn.Sequential(
        *_convolution(3, 48, stride=2),
        *_convolution(48, 48),
        *_convolution(48, 192, 1),
        nn.Conv2d(192, 192, 3, stride=2, groups=192, bias=False),
        nn.BatchNorm2d(192),
        nn.SiLU(),
        *_convolution(192, 192),
        *_convolution(192, 384, 1),
        *_convolution(384, 384, 7, groups=384),
        *_convolution(384, 384, 3, stride=2),
        *_head(384),
    )


NETWORKS = (
    ProbeNetwork("plain", _plain, (3, 32, 32), 4),
    ProbeNetwork("transformer", _transformer, (32,), 4, n_words=1000),
    ProbeNetwork("mobile", _mobile, (3, 48, 48), 4),
    ProbeNetwork("linear", _linear, (1, 28, 28), 16),
    ProbeNetwork("deep", _deep, (64, 8, 8), 4),
    ProbeNetwork("elementwise", _elementwise, (2, 40, 40), 8),
    ProbeNetwork("recurrent", _Recurrent, (16,), 8, n_words=500),
    ProbeNetwork("wide", _wide, (1, 40, 40), 4),
    ProbeNetwork("grouped", _grouped, (3, 24, 24), 8),
    ProbeNetwork("signal", _signal, (6, 128), 8),
    ProbeNetwork("dense", _dense, (3, 56, 56), 4),
    ProbeNetwork("broad", _broad, (48, 64), 8),
)


def probe_file() -> bytes:
    """The file, the same bytes whenever it is made with one version of torch."""
    return encode_probe_programs([_program(network) for network in NETWORKS])


def _program(network: ProbeNetwork) -> ProbeProgram:
    torch.manual_seed(0)
    size = (network.microbatch_size, *network.shape)
    inputs = torch.zeros(size) if network.n_words is None else torch.zeros(size, dtype=torch.long)
    target = torch.zeros(network.microbatch_size, dtype=torch.long)
    captured = capture(network.build(), functional.cross_entropy, inputs, target)
    return ProbeProgram(network.name, network.microbatch_size, captured.program)


if __name__ == "__main__":
    FILE.write_bytes(probe_file())
    print(f"{FILE}: {FILE.stat().st_size} bytes")
