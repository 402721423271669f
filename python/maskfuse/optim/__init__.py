"""Optimizers that leave masked weights where they are."""

from .protect import is_protected, protect

__all__ = ["is_protected", "protect"]
