"""How many threads torch computes with, said to a thread that computes."""

from __future__ import annotations

import torch

__all__ = ["adopt_torch_threads"]


def adopt_torch_threads() -> None:
    """Compute with torch's number of threads on this thread from now on.

    MKL keeps a number for every thread, and torch hands its own on only when it runs something of
    its own in parallel. Until then MKL takes all cores on a new thread, and adds up products of
    few rows in another order: other last bits.
    """
    torch.set_num_threads(torch.get_num_threads())
