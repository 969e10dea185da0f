"""A device's free memory, its peak use (None if the system does not tell), and out-of-memory errors."""

from __future__ import annotations

from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int | None:
    """The bytes that a process can still allocate: from CUDA, or Linux's `MemAvailable`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return _read_proc("/proc/meminfo", "MemAvailable") if device.type == "cpu" else None


def reset_peak(device: torch.device) -> None:
    """Reset CUDA's peak; the peak of a process on a CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes of tensors on a CUDA device since `reset_peak`, or Linux's `VmHWM` of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _read_proc("/proc/self/status", "VmHWM") if device.type == "cpu" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return "out of memory" in text or "can't allocate memory" in text


def _read_proc(file: str, name: str) -> int | None:
    """A number of a file whose lines are `NAME: NUMBER kB`, in bytes."""
    try:
        lines = Path(file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)
