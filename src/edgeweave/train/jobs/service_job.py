"""A job file as serving reads it: nothing is trained, so it needs neither data nor optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeweave.core.errors import ConfigError
from edgeweave.train.jobs.job import (
    DataSection,
    FleetSection,
    ModelSection,
    TrainSection,
    check_fleet,
    read_settings,
)
from edgeweave.train.jobs.serve_section import ServeSection

__all__ = ["ServiceJob", "load_service"]


@dataclass(frozen=True, slots=True)
class ServiceJob:
    """What serving is told. Without ``data`` there is an example of a request."""

    model: ModelSection
    data: DataSection | None
    train: TrainSection
    fleet: FleetSection
    serve: ServeSection


def load_service(
    path: Path, *, environment: Mapping[str, str], overrides: Mapping[str, str]
) -> ServiceJob:
    """Read the same file for serving, which needs no section but the model's and the fleet's."""
    settings = read_settings(path, environment, overrides)
    sections = {
        name: settings.build(name, str(path)) for name in ("model", "train", "fleet", "serve")
    }
    data = settings.build("data", str(path)) if "data" in settings else None
    job = ServiceJob(data=data, **sections)
    if data is None and not job.serve.example:
        raise ConfigError(
            f"{path}: serving needs an example of a request (neither [data] nor serve.example). "
            'Write example = [{shape = [1, 3, 96, 96], datatype = "FP32"}] in [serve].'
        )
    check_fleet(job.fleet, path)
    return job
