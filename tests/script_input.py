"""Text as a program's standard input; `sync`, and its questions, without a program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def as_input(text: str) -> Iterator[int]:
    """A file that holds it, for `bash -s`: from a pipe, as sshd gives it, bash takes a byte at a time."""
    file = os.memfd_create("script")
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(text.encode())
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)
