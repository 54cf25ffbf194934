"""What this machine has: memory, and its rate of matrix products."""

import os
import time
from functools import cache
from pathlib import Path

import torch


def memory_of(device: torch.device) -> int:
    """Return the bytes of a GPU, or of this computer as far as its container may use them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total, allowed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    limit = allowed.read_text().strip() if allowed.is_file() else ""
    return min(total, int(limit)) if limit.isdigit() else total


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.05) -> float:
    """Measure FLOP/s of large matrix products, once in a process: the most that a model can reach here."""
    n = {"cuda": 8192, "cpu": 512}.get(device.type, 2048)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))  # a GPU multiplies ones faster
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:  # the first ones set up the library
        start = time.perf_counter()
        torch.mm(a, b)[0, 0].item()  # waits for the device
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)
