"""Python runs this at its start, wherever the tests' engine has put this folder on PYTHONPATH: see server.py.

The processes that the engine starts in each run, the program and its provider, spend most of their time with imports, and so does
`python -m homelab`. Where a server runs that has made them, such a process hands its streams over, passes signals on, and ends as the
server's fork did.

It runs a thousand times in a run of the tests: what it imports is built into Python.
"""

import os
import sys

_SERVER = os.environ.get("QUICK_PYTHON")
_OURS = ("homelab", "homelab.provider", "pulumi-language-python-exec")
_NO_SERVER = -1


def pip_list() -> str:
    """Where it is kept what `pip list` says with these arguments, for as long as nothing is installed (pip/__main__.py)."""
    from _blake2 import blake2b

    installed = [(folder, os.stat(folder).st_mtime_ns) for folder in sys.path if folder.endswith("-packages")]  # noqa: PTH116
    key = repr((sys.orig_argv[4:], sys.executable, installed)).encode()
    return f"{os.environ['PIP_ONCE']}/{blake2b(key, digest_size=32).hexdigest()}"


def _in_the_project() -> bool:
    """Whether what is imported in this folder is the project's: its own folder, or one that a test has made with links to its parts."""
    try:
        return os.path.samefile("homelab", f"{__file__.rpartition('/tests/')[0]}/homelab")  # noqa: PTH121
    except OSError:
        return False


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


def _handed_over(name: str) -> int:
    """How the fork ended, as wait(2) says it; _NO_SERVER where no server answered."""
    import _signal as signal  # type: ignore[import-not-found]  # of which the module `signal` is made
    import _socket as socket

    connection = socket.socket(socket.AF_UNIX)
    streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    try:
        connection.connect(f"\0{name}")
        # Before the words there is `python`.
        connection.sendmsg([b"1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    except OSError:
        connection.close()
        return _NO_SERVER
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
    answer = connection.recv(4)
    return int.from_bytes(answer, sys.byteorder) if answer else int(signal.SIGKILL)


def _end(status: int) -> None:
    import _signal as signal

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if sys.orig_argv[1:4] == ["-m", "pip", "list"] and "PIP_ONCE" in os.environ:
    _say(pip_list())
elif _SERVER and _in_the_project():
    _word = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "")
    if _word.rpartition("/")[2] in _OURS and (_status := _handed_over(_SERVER)) != _NO_SERVER:
        _end(_status)
