"""The console script, and `python -m mta_cli`, which is the same. Knows only what Ctrl-C means while all else loads."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `mta` on this process's command line, and end the process with its exit code."""
    try:
        from mta_cli.app import main as command

        command()
    except KeyboardInterrupt:  # so early that there is nothing to tell
        sys.exit(130)


if __name__ == "__main__":
    main()
