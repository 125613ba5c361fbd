"""The work that is compared: ResNet-18 on made-up 32 x 32 images, in batches known to all sides.

Both sides build the same weights and the same batches from the same seeds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

__all__ = ["N_BLOCKS", "N_CLASSES", "Images", "cross_entropy", "resnet18", "stage_module"]

N_BLOCKS = 8
N_CLASSES = 10


def resnet18(seed: int) -> ResNetForImageClassification:
    """ResNet-18 with reproducible weights: 11.2 million parameters, 8 residual blocks."""
    torch.manual_seed(seed)
    config = ResNetConfig(  # type: ignore[call-arg]  # the stubs know no inherited options
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        embedding_size=64,
        layer_type="basic",
        num_labels=N_CLASSES,
    )
    model = ResNetForImageClassification(config)
    model.train()
    return model


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Mean over the batch, of the whole model's output or of the last stage's logits."""
    return F.cross_entropy(getattr(output, "logits", output), target)


def stage_module(model: ResNetForImageClassification, first: int, stop: int) -> nn.Module:
    """Blocks ``first`` to ``stop - 1``; block 0 comes with the stem, the last with the head."""
    encoder: Any = model.resnet.encoder
    blocks = [block for stage in encoder.stages for block in stage.layers]
    layers: list[nn.Module] = [model.resnet.embedder] if first == 0 else []
    layers += blocks[first:stop]
    if stop == N_BLOCKS:
        layers += [model.resnet.pooler, model.classifier]
    return nn.Sequential(*layers)


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random images and labels, made once from a seed."""

    def __init__(self, n_samples: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.randn(n_samples, 3, 32, 32, generator=generator)
        self._labels = torch.randint(N_CLASSES, (n_samples,), generator=generator)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._images[index], self._labels[index]

    def step_batch(self, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step, in the data set's order and from its beginning again at its end."""
        start = step * batch_size % len(self)
        return self._images[start : start + batch_size], self._labels[start : start + batch_size]
