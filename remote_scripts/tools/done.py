"""What a program has answered."""

from __future__ import annotations

from dataclasses import dataclass

#: How long a question may take: a program that hangs (a dead NFS mount, a card that is gone) must not hide what is
#: known without it.
ASK_SECONDS = 20.0
#: Statuses that no program here gives by itself: its time was up, and it isn't there; and the one in between:
#: its answer is longer than was asked for.
TIMED_OUT, TOO_MUCH, NOT_FOUND = 124, 125, 127


@dataclass(frozen=True)
class Done:
    """A program that has ended. `status`: 0 to 255 as a shell has it, with TIMED_OUT and NOT_FOUND; `output`: standard
    output, at most as much as was asked for; `error`: of `ask` the end of standard error; `said`: of `do` all that it
    has said, at most the last ANSWER_BYTES.
    """

    status: int
    output: bytes
    error: bytes = b""
    said: bytes = b""

    @property
    def text(self) -> str:
        """The output as it is, without the newlines at its end; bytes that are no UTF-8 are surrogates."""
        return self.output.decode("utf-8", "surrogateescape").rstrip("\n")

    @property
    def all_text(self) -> str:
        """Of `ask`: what it has said on both, without blanks around."""
        return (self.output + self.error).decode("utf-8", "replace").strip()

    @property
    def said_text(self) -> str:
        """Of `do`: all that it has said."""
        return self.said.decode("utf-8", "surrogateescape")

    @property
    def in_a_line(self) -> str:
        """Of `ask`: what a program said that has failed, the beginning of it."""
        text = self.all_text[:300]
        return "".join(c if c.isprintable() else " " for c in text) or f"no answer within {ASK_SECONDS:.0f} s"

    def failure(self, program: str) -> str:
        """Why it failed: what it has said on standard error, else its status."""
        status = "no answer in time" if self.status == TIMED_OUT else f"exit status {self.status} of {program}"
        return self.error.decode("utf-8", "replace").strip() or status
