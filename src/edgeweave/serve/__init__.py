"""Serve one model over a fleet: requests stream through stages, devices come and go meanwhile."""

from edgeweave.serve.endpoint import Endpoint, serve
from edgeweave.serve.options import ServeOptions
from edgeweave.serve.report import Change, DeviceUse, ServingReport

__all__ = ["Change", "DeviceUse", "Endpoint", "ServeOptions", "ServingReport", "serve"]
