"""Serve one model over a fleet: requests stream through stages, devices come and go meanwhile."""

from edgeweave.serving.endpoint import Endpoint, serve
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.report import Change, DeviceUse, ServingReport

__all__ = ["Change", "DeviceUse", "Endpoint", "ServeOptions", "ServingReport", "serve"]
