"""The current time, and whether a process is still running."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime


def utc_now() -> str:
    """The current time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_process_alive(pid: int) -> bool:
    """Whether a process with this number runs on this machine. On Windows, where asking could end it, always true."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
