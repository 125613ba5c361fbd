"""What a job may report beside its loss. A metric is ``(outputs, targets) -> tensor``.

It is captured with the model and computed by the device that holds the loss, so it is made of
tensor operations only; what it returns is a mean over the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy"]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of samples whose largest output, along dimension 1, is their class.

    >>> accuracy(torch.eye(4), torch.tensor([0, 1, 0, 3]))
    tensor(0.7500)
    """
    return (outputs.argmax(dim=1) == targets).to(torch.float32).mean()
