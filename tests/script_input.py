"""A script as a program's standard input; `sync`, and its questions, without a program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from homelab.remote import scripts

#: For the environment of scripts: `sync` as a function of each bash, since a test's folder has no disk that could lose its power, and the program takes longer
#: to start than what it is to flush takes to be written. It knows a file that isn't there. What is flushed when: tests/scripts/cut_kit.py.
QUICK_SYNC = {
    "BASH_FUNC_sync%%": """() {
  local one
  for one in "$@"; do
    [[ $one == -* || -e $one ]] || { builtin echo "sync: error opening '$one': No such file or directory" >&2; return 1; }
  done
}"""
}

# Of `within` (remote_scripts/lib/common.sh).
_LIMITED = 'exec timeout -k 2 "$1" "${AS_BY_DEFAULT[@]}" "${@:2}"'
assert _LIMITED in (scripts.FOLDER / "lib/common.sh").read_text()


def without_limits(text: str) -> str:
    """The script's own questions start no `timeout`, which is two processes of each.

    Programs that it installs on the host still do. They come before its own functions, as values of its arguments.
    """
    before, found, after = text.rpartition(_LIMITED)
    return f'{before}exec "${{AS_BY_DEFAULT[@]}}" "${{@:2}}"{after}' if found else text


@contextmanager
def as_input(text: str, *, as_sent: bool = False) -> Iterator[int]:
    """A file that holds it, for `bash -s`: from a pipe, as sshd gives it, bash takes a byte at a time, for 20 ms of each script.

    :param as_sent: as it is, with an end to each question: something may hang in this test, or what is sent is its subject. On hosts with a
        daemon, so in most of tests/lab and in tests/e2e, each question has one.

    What bash starts finds the rest of the script on its standard input, from the pipe and from the file. Through a pipe, and in parts, the
    scripts go in tests/lab and tests/e2e.
    """
    file = os.memfd_create("script")
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write((text if as_sent else without_limits(text)).encode())
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)
