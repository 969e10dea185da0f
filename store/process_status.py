"""Whether a process still runs."""

from __future__ import annotations

import os
import sys


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
