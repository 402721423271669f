"""Masks that change as a model is trained: gradual pruning, and sparse training from scratch."""

from .cubic import CubicSchedule
from .rewiring import SET, RigL

__all__ = ["SET", "CubicSchedule", "RigL"]
