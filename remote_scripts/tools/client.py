"""The client of a run that goes on after its answer: what it is told, and what it says meanwhile."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator


class Client:
    """At the other end of this process's standard input and output."""

    def tell(self, text: str) -> None:
        """A line of text.

        :raises OSError: it isn't there any more.
        """
        data = f"{text}\n".encode("utf-8", "replace")
        while data:
            data = data[os.write(1, data) :]

    def lines(self, silence: float, step: float) -> Iterator[str | None]:
        """The lines that it says, until it says no more: it has gone, or is silent for so many seconds.

        :param step: None comes each time when so many seconds have passed without a line.
        """
        rest, heard = b"", time.monotonic()
        while time.monotonic() - heard < silence:
            if not select.select([0], [], [], min(step, silence))[0]:
                yield None
                continue
            if not (data := os.read(0, 4096)):
                return
            heard = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-4096:]
            yield from (line.decode("utf-8", "replace") for line in lines)
