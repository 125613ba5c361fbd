"""Names that several layers have to agree on."""

from __future__ import annotations

from typing import Final

__all__ = ["COORDINATOR_NAME", "COORDINATOR_PREFIX"]

COORDINATOR_NAME: Final = "coordinator"
"""How links and costs name the coordinator, among devices."""

COORDINATOR_PREFIX: Final = f"{COORDINATOR_NAME}-"
"""How a coordinator's own name on the fabric begins: there may be several, one after the other."""
