"""The console script, also run by `python -m mta_cli`. Handles Ctrl-C while the program loads."""

from __future__ import annotations

import sys

from mta_cli.threads import CpuTimes, prepare_threads


def main() -> None:
    """Run `mta` on this process's command line, and end the process with its exit code."""
    try:
        start = CpuTimes.read()
        from mta_cli.app import main as command

        prepare_threads(start)  # importing took long enough to measure how busy the cores are
        command()
    except KeyboardInterrupt:  # the program was still loading, so there is nothing to report
        sys.exit(130)


if __name__ == "__main__":
    main()
