"""Bits on the wire: a tensor to bytes and back, in 2 to 16 bits a value. Knows no network."""

from edgeweave.codec.codecs import Codec, CodecName, blockfloat, none, parse, truncate, uniform
from edgeweave.codec.coded import decode, encode
from edgeweave.codec.feedback import encode_with_feedback

__all__ = [
    "Codec",
    "CodecName",
    "blockfloat",
    "decode",
    "encode",
    "encode_with_feedback",
    "none",
    "parse",
    "truncate",
    "uniform",
]
