"""Where compiled programs are kept between processes."""

import os
from pathlib import Path


def cache_folder():
    """`$XDG_CACHE_HOME/plain56`, or `~/.cache/plain56`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plain56"
