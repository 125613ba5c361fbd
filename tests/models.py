"""The zoo: small models of every kind Edgeweave promises to train, each with a loss and batches.

``ZOO[name]`` is an ``Example``; ``example.model()`` is freshly built with reproducible weights and
``example.batch(n)`` is ``(inputs, target)`` of ``n`` reproducible samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn

transformers.logging.set_verbosity_error()

Batch = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One model of the zoo. ``tied`` maps a further name of a tied parameter to the first."""

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[Any, Any], torch.Tensor]
    sample: Callable[[int], Batch]
    tied: dict[str, str] = field(default_factory=dict)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.build().train()

    def batch(self, n_samples: int, *, seed: int = 2) -> Batch:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.sample(n_samples)


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(getattr(output, "logits", output), target)


def next_token(output: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten())


def accuracy(output: Any, target: torch.Tensor) -> torch.Tensor:
    return (getattr(output, "logits", output).argmax(1) == target).float().mean()


class LeNet(nn.Module):
    """LeNet-5 for 28 x 28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.tanh(self.fc1(x.flatten(1)))
        return self.fc3(torch.tanh(self.fc2(x)))


class UNet(nn.Module):
    """Two levels; both skip connections cross several cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = self._block(3, 8)
        self.down2 = self._block(8, 16)
        self.bottom = self._block(16, 16)
        self.up2 = self._block(32, 8)
        self.up1 = self._block(16, 8)
        self.classify = nn.Conv2d(8, 4, 1)

    @staticmethod
    def _block(n_in: int, n_out: int) -> nn.Module:
        conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        bottom = self.bottom(F.max_pool2d(coarse, 2))
        up = self.up2(torch.cat([coarse, F.interpolate(bottom, scale_factor=2)], 1))
        up = self.up1(torch.cat([fine, F.interpolate(up, scale_factor=2)], 1))
        return self.classify(up)


class SensorLSTM(nn.Module):
    """Activity recognition: windows of 9 channels, two LSTM layers, a small head."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(9, 24, 2, batch_first=True, dropout=dropout)
        self.hidden = nn.Linear(24, 16)
        self.classify = nn.Linear(16, 6)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(windows.transpose(1, 2))
        return self.classify(torch.relu(self.hidden(states[:, -1])))


def mlp(*, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in ((12, 32), (32, 24), (24, 24), (24, 16), (16, 16)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(16, 5))


def _resnet18() -> nn.Module:
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        embedding_size=64,
        layer_type="basic",
        num_labels=10,
    )
    return transformers.ResNetForImageClassification(config)


def _mobilenetv2() -> nn.Module:
    return transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(num_labels=10, image_size=32, classifier_dropout_prob=0.0)
    )


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


def bert(*, dropout: float = 0.0) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=32,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2(*, dropout: float = 0.0, tied: bool = True) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=32,
        n_layer=3,
        n_head=4,
        vocab_size=100,
        n_positions=32,
        use_cache=False,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        tie_word_embeddings=tied,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(*, n_key_value_heads: int = 4) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_key_value_heads,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=32,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def _images(channels: int, size: int) -> Callable[[int], Batch]:
    return lambda n: (torch.randn(n, channels, size, size), torch.randint(10, (n,)))


def _tokens(n: int) -> Batch:
    return torch.randint(100, (n, 12)), torch.randint(100, (n, 12))


def _masked_tokens(n: int) -> Batch:
    lengths = torch.randint(4, 13, (n, 1))
    inputs = {
        "input_ids": torch.randint(100, (n, 12)),
        "attention_mask": (torch.arange(12) < lengths).long(),
    }
    return inputs, torch.randint(3, (n,))


def _segmented(n: int) -> Batch:
    return torch.randn(n, 3, 16, 16), torch.randint(4, (n, 16, 16))


_EXAMPLES = (
    Example("mlp", mlp, cross_entropy, lambda n: (torch.randn(n, 12), torch.randint(5, (n,)))),
    Example("lenet", LeNet, cross_entropy, _images(1, 28)),
    Example("resnet18", _resnet18, cross_entropy, _images(3, 32)),
    Example("mobilenetv2", _mobilenetv2, cross_entropy, _images(3, 32)),
    Example("unet", UNet, cross_entropy, _segmented),
    Example("vit", _vit, cross_entropy, _images(3, 32)),
    Example("bert", bert, cross_entropy, _masked_tokens),
    Example("gpt2", gpt2, next_token, _tokens, tied={"lm_head.weight": "transformer.wte.weight"}),
    Example("llama", llama, next_token, _tokens),
    Example(
        "lstm",
        SensorLSTM,
        cross_entropy,
        lambda n: (torch.randn(n, 9, 32), torch.randint(6, (n,))),
    ),
)

ZOO = {example.name: example for example in _EXAMPLES}
