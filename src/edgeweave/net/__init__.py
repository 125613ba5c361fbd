"""The fabric: frames, requests and liveliness between devices, over Zenoh or inside one process."""

from edgeweave.net._loss import Losses
from edgeweave.net.frame import (
    Frame,
    FrameHeader,
    TensorSpec,
    check_header,
    decode,
    encode,
    payload_bytes,
    specs_of,
)
from edgeweave.net.handshake import Hello, check_hello, hello_of
from edgeweave.net.keys import (
    check_device_name,
    check_name,
    control_key,
    control_pattern,
    device_of,
    frame_key,
    frame_pattern,
)
from edgeweave.net.link import (
    GilbertElliott,
    Links,
    LinkShape,
    RateTrace,
    link_name,
)
from edgeweave.net.memory import MemoryFabric
from edgeweave.net.memory_transport import MemoryTransport
from edgeweave.net.pieces import Assembler, split
from edgeweave.net.settings import NetSettings, TlsFiles
from edgeweave.net.shaped import ShapedTransport
from edgeweave.net.transport import (
    Buffer,
    Priority,
    Reliability,
    Subscription,
    Transport,
    TransportStatistics,
)
from edgeweave.net.zenoh_transport import ZenohTransport

__all__ = [
    "Assembler",
    "Buffer",
    "Frame",
    "FrameHeader",
    "GilbertElliott",
    "Hello",
    "LinkShape",
    "Links",
    "Losses",
    "MemoryFabric",
    "MemoryTransport",
    "NetSettings",
    "Priority",
    "RateTrace",
    "Reliability",
    "ShapedTransport",
    "Subscription",
    "TensorSpec",
    "TlsFiles",
    "Transport",
    "TransportStatistics",
    "ZenohTransport",
    "check_device_name",
    "check_header",
    "check_hello",
    "check_name",
    "control_key",
    "control_pattern",
    "decode",
    "device_of",
    "encode",
    "frame_key",
    "frame_pattern",
    "hello_of",
    "link_name",
    "payload_bytes",
    "specs_of",
    "split",
]
