"""Peak memory of running a model: the accelerator's where there is one, else main memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def peak_memory(call: Callable[[], Any], weights: int) -> int:
    """Bytes that are in use at once at the peak of a call.

    In main memory: the model's ``weights`` (bytes) and what the process takes on top of what it has before the call, so that
    libraries and data sets do not count. On Linux this is read from ``/proc/self/status`` (VmHWM): ``getrusage``'s
    ``ru_maxrss``, taken elsewhere, begins at the size of the process that started this one, and cannot be set back.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    forget_peak()
    before = _status('VmRSS') or _usage()
    call()
    return weights + max((_status('VmHWM') or _usage()) - before, 0)


def peak_of_process() -> int:
    """Bytes of main memory that this process had at its peak, libraries included; since :func:`forget_peak`, where it works."""
    return _status('VmHWM') or _usage()


def resident() -> int:
    """Bytes of main memory that this process has now, without what is free already."""
    _return_what_is_free()
    return _status('VmRSS') or _usage()


def forget_peak() -> None:
    """Let the process's peak begin anew at what it has now, without what is free already."""
    _return_what_is_free()
    try:
        CLEAR.write_text('5')
    except OSError:
        pass  # not allowed here: the former peak stays


def kind_of_memory() -> str:
    return "accelerator's memory" if torch.cuda.is_available() else 'main memory'


def _return_what_is_free() -> None:
    """glibc keeps what earlier calls freed, and a call that uses it again would seem to take nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        pass


def _usage() -> int:
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == 'darwin' else value * 1024  # bytes there, KiB on Linux


def _status(name: str) -> int | None:
    """An entry of the process's status in bytes; None where there is no such file."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    return None
