"""One edge's coding: what travels is the difference from what the other end has already.

CHOCO-SGD (Koloskova et al., 2019): both ends keep the model as it was told, x^, and a message is
C(x - x^). What a message loses stays in the next difference, which is error feedback; differences
vanish as peers agree, so that coding leaves no noise behind. Both ends mix what was told, so mixing
changes no mean whatever the codec loses.

Deviation: x^ is kept for each edge, not once for all neighbours, because edges come and go and
gossip SGD tells one neighbour at a time. It takes two models of memory an edge; without a codec
nothing is kept.
"""

from __future__ import annotations

import torch

from edgeweave.codec import Codec, decode, encode
from edgeweave.core.errors import WireError
from edgeweave.mixing.message import Message

__all__ = ["Line"]


class Line:
    """The coding of one edge, at one of its ends, in one session."""

    def __init__(self, codec: Codec, seed: int) -> None:
        self._codec = codec
        self._seed = seed
        self._n_said = 0
        self._said: torch.Tensor | None = None
        self._heard: torch.Tensor | None = None

    def say(self, model: torch.Tensor) -> tuple[torch.Tensor, bool, torch.Tensor]:
        """What to send, whether it is coded, and the model as the other end will have it.

        The first message of a session is exact: the difference from nothing is the model.
        """
        if self._codec.name == "none":
            return model, False, model
        if self._said is None:
            self._said = model
            return model, False, model
        self._n_said += 1
        coded = encode(model - self._said, self._codec, seed=self._seed + self._n_said)
        self._said = self._said + decode(coded)
        return torch.frombuffer(bytearray(coded), dtype=torch.uint8), True, self._said

    def hear(self, message: Message, like: torch.Tensor) -> torch.Tensor:
        """The other end's model as it told it; ``WireError`` if it is not one like ``like``."""
        tensor = message.tensor
        if tensor is None:
            raise WireError(f"a {message.kind} message brings a model (it has none).")
        if not message.coded:
            if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise WireError(
                    f"a model here is {like.dtype} of {like.numel()} values (got {tensor.dtype} of "
                    f"{tensor.numel()}). The peer runs another program."
                )
            heard = tensor
        elif self._heard is None or self._codec.name == "none":
            raise WireError("a coded difference came before the model it differs from.")
        else:
            heard = self._heard + decode(tensor.numpy().data, into=torch.empty_like(like))
        if self._codec.name != "none":
            self._heard = heard
        return heard
