"""The package version, and the version of the protocol that agents speak."""

__all__ = ["PROTOCOL_VERSION", "__version__"]

__version__ = "0.1.0"

PROTOCOL_VERSION = 5
"""Grows with every incompatible change of a message, a frame or the program format."""
