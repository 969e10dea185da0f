"""The console script, also run by `python -m mta_cli`. Handles Ctrl-C while the program loads."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `mta` on this process's command line, and end the process with its exit code."""
    try:
        from mta_cli.app import main as command

        command()
    except KeyboardInterrupt:  # the program was still loading: there is nothing to report
        sys.exit(130)


if __name__ == "__main__":
    main()
