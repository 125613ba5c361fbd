"""Requests to a fleet in this process while its devices are hurt, at requests of their number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from edgeweave.serving import Endpoint, ServeOptions, serve
from tests.fleet.worlds import QUICK, wait_until
from tests.models import ZOO
from tests.train.troubled import Act, Troubled, troubled_fleet

HURRIED = replace(QUICK, silence=0.3, request=2.0, stop=2.0)
EVERYBODY = ServeOptions(use="all", timeout_seconds=60.0, queue_size=16)


@dataclass(frozen=True)
class Served:
    """An endpoint on a fleet that can be hurt."""

    endpoint: Endpoint
    troubled: Troubled
    model: nn.Module

    def answers(self, n_requests: int, script: Mapping[int, Act]) -> list[torch.Tensor]:
        """The answers of a stream; before request ``n`` is read, ``script[n]`` happens."""
        return list(self.endpoint.stream(self._scripted(n_requests, script)))

    def expected(self, n_requests: int) -> list[torch.Tensor]:
        """What the unsplit model answers."""
        with torch.inference_mode():
            return [self.model(request(number)) for number in range(n_requests)]

    def _scripted(self, n_requests: int, script: Mapping[int, Act]) -> Iterator[torch.Tensor]:
        for number in range(n_requests):
            act = script.get(number)
            if act is not None:
                act(self.troubled)
            yield request(number)

    def wait_devices(self, *names: str) -> None:
        """Until these serve, and nobody else."""

        def is_so() -> bool:
            plan = self.endpoint.plan
            return plan is not None and sorted(plan.devices) == sorted(names)

        wait_until(is_so, f"{', '.join(names)} serve (plan: {self.endpoint.plan})")


def request(number: int) -> torch.Tensor:
    return torch.randn(1, 12, generator=torch.Generator().manual_seed(number))


@contextlib.contextmanager
def served(*devices: str, options: ServeOptions = EVERYBODY) -> Iterator[Served]:
    """The zoo's MLP, served by everybody. At the end nobody works for anybody any more."""
    model = ZOO["mlp"].model().eval()
    with troubled_fleet(*devices, timeouts=HURRIED) as troubled:
        with serve(model, troubled.world.fleet, request(0), options=options) as endpoint:
            yield Served(endpoint, troubled, model)
            troubled.resume_all()
        troubled.wait_all_free()
