"""What kernels are chosen by: facts of a device."""

from __future__ import annotations

import torch


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def architecture(device: torch.device) -> str:
    """What configurations are listed under: `sm90`, `sm80` (all others of that maker), `amd`."""
    if torch.version.hip is not None:
        return "amd"
    return "sm90" if capability(device) // 10 == 9 else "sm80"


def capability(device: torch.device) -> int:
    """Ten times the compute capability, 0 in the interpreter: configurations are kept by it."""
    if not _is_gpu(device):
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """Of the device; in the interpreter as few as the tests' stand-in for CUDA has, so that small products are cut."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if _is_gpu(device) else 6
