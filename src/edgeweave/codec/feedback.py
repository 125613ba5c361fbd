"""Error feedback: what one message lost is added to the next, for parameters that are gossiped.

Not for activations and gradients of a pipeline: there every message belongs to other samples.
"""

from __future__ import annotations

import torch

from edgeweave.codec.codecs import Codec
from edgeweave.codec.coded import decode, encode

__all__ = ["encode_with_feedback"]


def encode_with_feedback(
    tensor: torch.Tensor, residual: torch.Tensor, codec: Codec, *, seed: int | None = None
) -> tuple[memoryview, torch.Tensor]:
    """Code ``tensor + residual``; return the bytes, and the residual for the next message.

    What receivers have of n messages differs in sum from what was meant by the last residual only.
    Begin with zeros. A value that is not finite would stay in the residual for ever, so leave such
    messages out.

    >>> from edgeweave.codec import blockfloat
    >>> step = torch.full((256,), 0.3)
    >>> residual = torch.zeros(256)
    >>> received = torch.zeros(256)
    >>> for _ in range(10):
    ...     coded, residual = encode_with_feedback(step, residual, blockfloat(3))
    ...     received += decode(coded)
    >>> torch.allclose(received + residual, 10 * step)
    True
    """
    meant = tensor.detach() + residual
    coded = encode(meant, codec, seed=seed)
    return coded, meant - decode(coded).to(meant.device)
