"""The main job: train on handwritten digits, mask, fine-tune, and compare with plain PyTorch."""

from .run import run

__all__ = ["run"]
