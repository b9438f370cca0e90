"""A script as a program's standard input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_input(text: str) -> Iterator[int]:
    """A file that holds it, for `bash -s`: from a pipe, as sshd gives it, bash takes a byte at a time, for 20 ms of each script.

    What bash starts finds the rest of the script on its standard input, from the pipe and from the file. Through a pipe, and in parts, the
    scripts go in tests/lab and tests/e2e.
    """
    file = os.memfd_create("script")
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(text.encode())
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)
