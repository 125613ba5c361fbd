"""The memory that a stage needs on its device.

    stage = parameters + buffers                        the weights it serves
          + gradients                                   as many bytes as it trains
          + ceil(optimizer bytes per trainable byte x trainable bytes)
          + in flight x activations                     what autograd keeps for each microbatch
          + older versions x trainable bytes            what a schedule without flush still needs

Not counted: the interpreter and libraries, messages on their way, and the working space inside an
operator. A device's limit has to leave room for them.
"""

from __future__ import annotations

import math

from edgeweave.plan.costs import Costs

__all__ = ["stage_memory_bytes"]


def stage_memory_bytes(
    costs: Costs, first: int, stop: int, in_flight: int, older_versions: int = 0
) -> int:
    """The bytes that units ``first`` to ``stop - 1`` need with so many microbatches in flight.

    ``older_versions`` of the weights are kept beside the newest. A tied parameter counts in each
    unit that uses it.
    """
    units = costs.units[first:stop]
    trainable = sum(unit.trainable_bytes for unit in units)
    weights = sum(unit.parameter_bytes + unit.buffer_bytes for unit in units)
    optimizer = math.ceil(costs.optimizer_bytes_per_trainable_byte * trainable)
    activations = sum(unit.activation_bytes for unit in units)
    held = in_flight * activations + older_versions * trainable
    return weights + trainable + optimizer + held
