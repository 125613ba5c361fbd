"""Bits on the wire: a tensor to bytes and back, in 2 to 16 bits a value. Knows no network."""

from edgeweave.codec.codecs import Codec, CodecName, blockfloat, none, parse, truncate, uniform
from edgeweave.codec.coded import decode, encode
from edgeweave.codec.datagrams import (
    PAYLOAD_BYTES,
    dealt,
    kept,
    n_datagrams,
    put_together,
    row_length,
)
from edgeweave.codec.feedback import encode_with_feedback

__all__ = [
    "PAYLOAD_BYTES",
    "Codec",
    "CodecName",
    "blockfloat",
    "dealt",
    "decode",
    "encode",
    "encode_with_feedback",
    "kept",
    "n_datagrams",
    "none",
    "parse",
    "put_together",
    "row_length",
    "truncate",
    "uniform",
]
