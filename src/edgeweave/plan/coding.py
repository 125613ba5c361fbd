"""Which links code what they carry, and in how many bits: as few as a short step needs, no fewer.

Costs know links as they are. ``coded`` makes each as fast as a codec may make it; with these a
split is looked for. ``choose_codecs`` then takes back every bit that buys no time::

    no link is slower than t:   t = 90 ms   A -> B exact     B -> C 16 bits    step 1.40 s
                                t = 45 ms   A -> B 16 bits   B -> C  8 bits    step 1.02 s   chosen
                                t = 25 ms   A -> B  8 bits   B -> C  4 bits    step 1.00 s
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgeweave.core.errors import ConfigError
from edgeweave.plan.costs import Costs
from edgeweave.plan.links import Link, LinkCoding

__all__ = [
    "EXACT_BITS",
    "Ends",
    "LinkCodec",
    "candidates",
    "coded",
    "with_codecs",
    "with_link_rates",
]

EXACT_BITS = 32
"""What links without a codec count as, where bits are compared."""

Ends = tuple[str, str]
"""The source and the target of a link."""


@dataclass(frozen=True, slots=True)
class LinkCodec:
    """Values on the link from one device to another have so many bits."""

    source: str
    target: str
    bits: int

    def __post_init__(self) -> None:
        if self.bits < 1 or self.source == self.target:
            raise ConfigError(
                f"a codec has bits, and a link two ends (got {self.bits} bits from "
                f"{self.source!r} to {self.target!r}). Plan again."
            )

    @property
    def ends(self) -> Ends:
        return self.source, self.target


def coded(costs: Costs) -> Costs:
    """The costs with every link between devices as fast as it may be; themselves without codecs."""
    if costs.coding is None:
        return costs
    names = [device.device for device in costs.devices]
    pairs = ((source, target) for source in names for target in names if source != target)
    return _with_links(costs, {ends: _fastest(costs, ends) for ends in pairs})


def with_codecs(costs: Costs, codecs: Iterable[LinkCodec]) -> Costs:
    """The costs with these codecs on their links, whatever others had been chosen for them."""
    chosen = {each.ends: each.bits for each in codecs}
    return _with_links(costs, {ends: candidate(costs, ends, chosen[ends]) for ends in chosen})


def with_link_rates(costs: Costs, rates: Mapping[Ends, float]) -> Costs:
    """The costs with links that carry so many bytes per second."""
    links = {ends: replace(costs.link(*ends), bytes_per_second=rates[ends]) for ends in rates}
    return _with_links(costs, links)


def candidates(costs: Costs, ends: Ends) -> tuple[Link, ...]:
    """The link as it is, if it may be so, then with ever fewer bits."""
    coding, plain = costs.coding, replace(costs.link(*ends), coding=None)
    if coding is None:
        return (plain,)
    narrower = tuple(candidate(costs, ends, bits) for bits in coding.widths)
    return narrower if coding.always else (plain, *narrower)


def candidate(costs: Costs, ends: Ends, bits: int) -> Link:
    """The link with so many bits for each value."""
    if costs.coding is None:
        raise ConfigError(
            f"codecs need costs that know of coding (asked for {bits} bits from {ends[0]} to "
            f"{ends[1]}). Plan again."
        )
    source, target = (costs.device(name) for name in ends)
    coding = LinkCoding(
        bits,
        costs.coding.share(bits),
        source.encode_seconds_per_byte,
        target.decode_seconds_per_byte,
    )
    return replace(costs.link(*ends), coding=coding)


def _fastest(costs: Costs, ends: Ends) -> Link:
    """Of equally fast ones that with the most bits."""
    return max(candidates(costs, ends), key=lambda link: link.goodput)


def _with_links(costs: Costs, changed: Mapping[Ends, Link]) -> Costs:
    if not changed:
        return costs
    links = {source: dict(targets) for source, targets in costs.links.items()}
    for (source, target), link in changed.items():
        links.setdefault(source, {})[target] = link
    return replace(costs, links=links)
