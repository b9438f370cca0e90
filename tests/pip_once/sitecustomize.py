"""Python runs this at its start, wherever the tests' engine has put this folder on PYTHONPATH: see pip/__main__.py. What it imports is built into Python."""

import os
import sys


def pip_list() -> str:
    """Where it is kept what `pip list` says with these arguments, for as long as nothing is installed (pip/__main__.py)."""
    from _blake2 import blake2b

    installed = [(folder, os.stat(folder).st_mtime_ns) for folder in sys.path if folder.endswith("-packages")]  # noqa: PTH116
    key = repr((sys.orig_argv[4:], sys.executable, installed)).encode()
    return f"{os.environ['PIP_ONCE']}/{blake2b(key, digest_size=32).hexdigest()}"


def _say(path: str) -> None:
    """Ends, with what is kept there; returns where nothing is."""
    try:
        with open(path, "rb", buffering=0) as kept:  # noqa: PTH123
            left = kept.readall()
    except FileNotFoundError:
        return
    while left:
        left = left[os.write(1, left) :]
    os._exit(0)


if sys.orig_argv[1:4] == ["-m", "pip", "list"] and "PIP_ONCE" in os.environ:
    _say(pip_list())
