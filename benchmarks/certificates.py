"""Certificates for a benchmark over TLS: an authority and members, made by ``openssl``."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgeweave.net import TlsFiles

__all__ = ["make_certificates"]

_DEADLINE_SECONDS = 20.0
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_certificates(folder: Path) -> TlsFiles:
    """One certificate for 127.0.0.1, signed by a new authority; both sides may show it."""
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    key, request, certificate = (folder / f"member.{end}" for end in ("key", "csr", "pem"))
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1", encoding="ascii")
    _openssl(
        *("req", "-x509", *_CURVE, "-days", "2", "-subj", "/CN=benchmark"),
        *("-keyout", str(authority_key), "-out", str(authority)),
    )
    _openssl(
        *("req", *_CURVE, "-subj", "/CN=member", "-keyout", str(key), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-CAcreateserial"),
        *("-CA", str(authority), "-CAkey", str(authority_key)),
        *("-extfile", str(extensions), "-out", str(certificate)),
    )
    return TlsFiles(authority, certificate, key)


def _openssl(*arguments: str) -> None:
    command = ("openssl", *arguments)
    subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE_SECONDS)
