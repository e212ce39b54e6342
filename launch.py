"""The program in a checkout. It is the same as the installed command `plain56` and as `python -m plain56`."""

import sys

from plain56 import cli


def main(argv):
    """Runs the mode that the command line names, and returns the exit status."""
    return cli.main(argv, "python launch.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
