"""The operators in Triton, one to a file, each with the signature of its plain reference."""

from pipeline.ops.gpu import decoding, linear, maps
from pipeline.ops.gpu.decoding import absorb_and_merge, decode, step
from pipeline.ops.gpu.linear import linear_attention
from pipeline.ops.gpu.maps import FusedKernel, features

__all__ = [
    "MODULES",
    "FusedKernel",
    "absorb_and_merge",
    "decode",
    "features",
    "linear_attention",
    "step",
]

MODULES = [decoding, maps, linear]
