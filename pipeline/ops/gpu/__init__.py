"""The operators in Triton, one to a file, each with the signature of its plain reference."""

from pipeline.ops.gpu import decoding
from pipeline.ops.gpu.decoding import absorb_and_merge, decode, step

__all__ = ["MODULES", "absorb_and_merge", "decode", "step"]

MODULES = [decoding]
