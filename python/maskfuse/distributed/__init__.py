"""Training in several processes: gradients of active weights alone, and the same masks everywhere."""

from .masks import broadcast_masks, check_same_masks
from .sparse_allreduce import SparseAllReduce, register_sparse_allreduce, sparse_allreduce_hook

__all__ = [
    "SparseAllReduce",
    "broadcast_masks",
    "check_same_masks",
    "register_sparse_allreduce",
    "sparse_allreduce_hook",
]
