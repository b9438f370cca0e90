"""Which moments a sweep tries: the same ones in each run of `make test`, so that what fails is the change; others with another seed.

Of the tests with `@pytest.mark.one_of("killed runs")` and the same words, one is tried (tests/conftest.py).

HOMELAB_SEED=7: others; a test that fails on a sample names its seed. HOMELAB_EVERY_CUT=1: every moment (`make test-nightly`).
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

EVERY = bool(os.environ.get("HOMELAB_EVERY_CUT"))
# In the environment, so that all processes of a run have the same one.
SEED = os.environ.get("HOMELAB_SEED") or "2026-11-23"
os.environ["HOMELAB_SEED"] = SEED


def drawn(name: str) -> random.Random:
    """Random numbers of the seed, for one test."""
    return random.Random(f"{SEED} {name}")


def sample(moments: Sequence[T], most: int, name: str) -> list[T]:
    """Those that are tried, in their order."""
    if EVERY or len(moments) <= most:
        return list(moments)
    return [moments[number] for number in sorted(drawn(name).sample(range(len(moments)), most))]


def paired(rows: Sequence[T], columns: Sequence[U], name: str) -> list[tuple[T, U]]:
    """Fields of a matrix: each row and each column once at least, with others for another seed."""
    if EVERY:
        return list(itertools.product(rows, columns))
    most, of_seed = max(len(rows), len(columns)), drawn(name)
    left, right = of_seed.sample(list(rows), len(rows)), of_seed.sample(list(columns), len(columns))
    return [(left[number % len(left)], right[number % len(right)]) for number in range(most)]
