"""The installed command `plain56`, also as `python -m plain56`."""

import sys

from plain56 import cli


def main():
    """Runs the mode that the command line names, and returns the exit status."""
    return cli.main(sys.argv[1:], "plain56")


if __name__ == "__main__":
    sys.exit(main())
