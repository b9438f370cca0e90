"""What a layer ends with where it can't do its work."""

from __future__ import annotations


class Failure(Exception):
    """A refusal or a failure, as a person reads it. Whatever the run has changed is put back when it is raised.

    :param wanted: what was to be so.
    :param found: what is so.
    :param why: why that matters.
    :param next: what to do.
    """

    def __init__(self, wanted: str, found: str, why: str, next: str) -> None:
        super().__init__(wanted, found, why, next)
        self.wanted, self.found, self.why, self.next = wanted, found, why, next
