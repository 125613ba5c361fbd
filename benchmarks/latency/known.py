"""Known networks, on which predictions are judged. The model never sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks.latency.blocks import Logits
from benchmarks.latency.drawing import Example, next_token_loss
from benchmarks.resnet import resnet18

__all__ = ["KNOWN"]


def _pictures(name: str, model: nn.Module, batch: int, size: int, channels: int = 3) -> Example:
    inputs = torch.randn(batch, channels, size, size)
    labels = torch.zeros(batch, dtype=torch.long)
    return Example(name, model, inputs, labels, functional.cross_entropy)


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((32, 32), (64, 64), (128, 128), (256,)):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, *head)


def _gpt2(name: str) -> Example:
    config = transformers.GPT2Config(
        n_embd=128,
        n_layer=4,
        n_head=4,
        vocab_size=256,
        n_positions=64,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    tokens = torch.zeros(4, 64, dtype=torch.long)
    # Another tensor: a model whose inputs are its targets would be captured as the loss alone.
    model, targets = Logits(transformers.GPT2LMHeadModel(config)), tokens.clone()
    return Example(name, model, tokens, targets, next_token_loss)


def _classifier(kind: str, **options: Any) -> nn.Module:
    """A model of ``transformers`` that tells ten classes of images apart."""
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **options)
    return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))


_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 32,
    "patch_size": 4,
}
_EFFICIENT = {
    "image_size": 64,
    "width_coefficient": 0.6,
    "depth_coefficient": 0.6,
    "hidden_dim": 768,
    "drop_connect_rate": 0.0,
}
_NEXT = {"depths": [2, 2, 4, 2], "hidden_sizes": [32, 64, 128, 256], "image_size": 64}

KNOWN: Sequence[Callable[[], Example]] = (
    lambda: _pictures("resnet18-32", Logits(resnet18(0)), 4, 32),
    lambda: _pictures("resnet50-64", _classifier("ResNet"), 2, 64),
    lambda: _pictures("mobilenetv1-64", _classifier("MobileNetV1", image_size=64), 4, 64),
    lambda: _pictures("mobilenetv2-32", _classifier("MobileNetV2", image_size=32), 8, 32),
    lambda: _pictures("mobilenetv2-96", _classifier("MobileNetV2", image_size=96), 2, 96),
    lambda: _pictures("efficientnet-64", _classifier("EfficientNet", **_EFFICIENT), 2, 64),
    lambda: _pictures("convnext-64", _classifier("ConvNext", **_NEXT), 2, 64),
    lambda: _pictures("vit-32", _classifier("ViT", **_VIT), 4, 32),
    lambda: _pictures("vgg-32", _vgg(), 8, 32),
    lambda: _pictures("lenet-28", _lenet(), 16, 28, channels=1),
    lambda: _gpt2("gpt2-64"),
)
