"""Agreement of gradients: parts of stages add up to what the whole model has."""

from __future__ import annotations

import pytest
import torch

from edgeweave.core.errors import WireError
from edgeweave.device import Agreement, told_products
from edgeweave.device.stages.comparison import gradient_products


def gradients(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"p{n}": torch.randn(n + 1, 3, generator=generator) for n in range(6)}


def test_parts_add_up_to_the_cosine_of_the_whole() -> None:
    exact, coded = gradients(0), gradients(1)
    names = list(exact)
    parts = [
        gradient_products({n: exact[n] for n in part}, {n: coded[n] for n in part})
        for part in (names[:1], names[1:4], names[4:])
    ]
    one, other = (torch.cat([g.flatten() for g in each.values()]) for each in (exact, coded))
    found = Agreement.of(parts)
    cosine = torch.cosine_similarity(one, other, dim=0).item()
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.norm_ratio == pytest.approx((other.norm() / one.norm()).item(), rel=1e-6)


def test_equal_gradients_agree_and_scaled_ones_differ_in_norm_alone() -> None:
    exact = gradients(0)
    assert Agreement.of([gradient_products(exact, exact)]).cosine == pytest.approx(1.0)
    half = {name: grad / 2 for name, grad in exact.items()}
    found = Agreement.of([gradient_products(exact, half)])
    assert (found.cosine, found.norm_ratio) == (pytest.approx(1.0), pytest.approx(0.5))


def test_gradients_of_nothing_agree_and_one_that_vanished_does_not() -> None:
    nothing = gradient_products({}, {})
    assert Agreement.of([nothing, nothing]) == Agreement(1.0, 1.0)
    exact = gradients(0)
    gone = {name: torch.zeros_like(grad) for name, grad in exact.items()}
    assert Agreement.of([gradient_products(exact, gone)]) == Agreement(0.0, 0.0)
    assert Agreement.of([gradient_products(gone, exact)]).cosine == 0.0


def test_half_precision_does_not_overflow() -> None:
    large = {"p": torch.full((1000,), 6e4, dtype=torch.float16)}
    assert Agreement.of([gradient_products(large, large)]).cosine == pytest.approx(1.0)


def test_a_number_that_is_missing_is_refused() -> None:
    assert told_products({"exact": 1.0, "coded": 2.0, "both": 3.0}).both == 3.0
    with pytest.raises(WireError, match=r"a comparison of gradients is three numbers"):
        told_products({"exact": 1.0, "coded": 2.0})
