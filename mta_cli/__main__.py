"""`python -m mta_cli` is `mta`."""

from mta_cli.app import main

if __name__ == "__main__":
    main()
