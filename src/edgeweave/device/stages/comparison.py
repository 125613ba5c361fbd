"""How far coding bends a gradient: three numbers of one stage, which add up over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch

from edgeweave.core.errors import WireError

__all__ = ["Agreement", "GradientProducts", "gradient_products", "told_products"]


class GradientProducts(msgspec.Struct, frozen=True):
    """Scalar products of a stage's exact and coded gradient, with themselves and each other."""

    exact: float
    coded: float
    both: float


class Agreement(msgspec.Struct, frozen=True):
    """A coded gradient against the exact one, over all parameters of the model.

    A parameter that several stages hold counts in each of them with its part of the gradient.
    """

    cosine: float
    norm_ratio: float
    """The coded one's norm over the exact one's."""

    @classmethod
    def of(cls, stages: list[GradientProducts]) -> Agreement:
        """Gradients of nothing agree."""
        exact = sum(each.exact for each in stages) ** 0.5
        coded = sum(each.coded for each in stages) ** 0.5
        if not exact or not coded:
            return cls(1.0, 1.0) if exact == coded else cls(0.0, coded / exact if exact else 0.0)
        return cls(sum(each.both for each in stages) / exact / coded, coded / exact)


def gradient_products(
    exact: Mapping[str, torch.Tensor], coded: Mapping[str, torch.Tensor]
) -> GradientProducts:
    """Those of two gradients of the same parameters, in float64."""

    def product(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        return sum(
            torch.dot(grad.double().flatten(), other[name].double().flatten()).item()
            for name, grad in one.items()
        )

    return GradientProducts(product(exact, exact), product(coded, coded), product(exact, coded))


def told_products(scalars: Mapping[str, float]) -> GradientProducts:
    """What a stage tells; ``WireError`` if a number is missing."""
    try:
        told = msgspec.convert(scalars, GradientProducts)
    except msgspec.ValidationError as error:
        raise WireError(f"a comparison of gradients is three numbers ({error}).") from error
    if told.exact < 0 or told.coded < 0:
        raise WireError(f"a gradient's product with itself is 0 or more (got {told}).")
    return told
