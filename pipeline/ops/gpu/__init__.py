"""The operators in Triton, one to a file, each with the signature of its plain reference.

``decoding`` serves a bounded cache, ``opaque`` the same under `torch.compile`; the names below are
operators over sequences.
"""

from pipeline.ops.gpu import decoding, linear, maps, scan, sparse
from pipeline.ops.gpu.linear import linear_attention
from pipeline.ops.gpu.scan import bounded_attention, evict
from pipeline.ops.gpu.sparse import correct, sparse_attention, synthesize

__all__ = [
    "MODULES",
    "bounded_attention",
    "correct",
    "evict",
    "linear_attention",
    "sparse_attention",
    "synthesize",
]

MODULES = [decoding, maps, linear, scan, sparse]
