"""Three small models for demos, tests and first steps. Plain torch; they know nothing of Edgeweave.

Each is captured and cut like any model of a user.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["digits_cnn", "lenet", "mlp"]


def digits_cnn(n_classes: int = 10, *, in_channels: int = 1) -> nn.Sequential:
    """Seven convolutions with BatchNorm and a linear layer, for pictures of 8x8 or so.

    Costs are uneven on purpose: the first layers have the large pictures, the last the weights.
    """
    return nn.Sequential(
        *_convolution(in_channels, 16),
        *_convolution(16, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 96),
        *_convolution(96, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, n_classes),
    )


def lenet(n_classes: int = 10, *, in_channels: int = 1) -> nn.Sequential:
    """Two convolutions and three linear layers, for pictures of 28x28: MNIST and its likes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, n_classes),
    )


def mlp(n_inputs: int, n_classes: int, *, hidden: Sequence[int] = (128, 128)) -> nn.Sequential:
    """Linear layers of the ``hidden`` widths with ReLU between, over the flattened input."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(n_inputs, width), nn.ReLU()]
        n_inputs = width
    return nn.Sequential(*layers, nn.Linear(n_inputs, n_classes))


def _convolution(n_in: int, n_out: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
