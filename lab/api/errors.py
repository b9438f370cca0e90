"""What the API refuses, in the form in which a Proxmox VE node says it."""

from __future__ import annotations


class ApiError(Exception):
    """A request that is answered with an error.

    The text goes into the status line, where proxmoxer reads it, and as `message` into the body.

    Args:
        status: HTTP status code.
        text: what is said; Perl's messages end with a newline, which the body keeps and the status line loses.
        errors: by parameter, for 400.
        body: False for the refusals that come before any handler and have an empty body.
    """

    def __init__(self, status: int, text: str, errors: dict[str, str] | None = None, *, body: bool = True) -> None:
        super().__init__(text.strip())
        self.status = status
        self.text = text
        self.errors = errors
        self.body = body

    @property
    def reason(self) -> str:
        """The status line's text: one line."""
        return " ".join(self.text.split("\n")).strip()


class Died(ApiError):
    """What a `die` in a handler becomes: 500, or the exit status of a task."""

    def __init__(self, text: str) -> None:
        super().__init__(500, text if text.endswith("\n") else f"{text}\n")


class FormatError(ValueError):
    """A value that hasn't the format; the text follows `invalid format - `, and ends with a newline."""


def bad_parameters(errors: dict[str, str]) -> ApiError:
    """Parameters that aren't right, each with its message."""
    return ApiError(400, "Parameter verification failed.\n", errors)
