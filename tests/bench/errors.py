"""What stops a measurement."""

from __future__ import annotations


class BenchError(Exception):
    """Something could not be measured: what was wanted, what was found, why it matters, what to do next."""

    def __init__(self, wanted: str, found: str, why: str, next_step: str) -> None:
        super().__init__(f"wanted: {wanted}\nfound:  {found}\nwhy:    {why}\nnext:   {next_step}")
        self.wanted = wanted
        self.found = found
