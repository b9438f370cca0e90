"""Which moments a sweep tries: others each day, so that few a run come to be all of them, and the same ones again when asked.

HOMELAB_EVERY_CUT=1: every moment. HOMELAB_SEED=2026-11-21: those of that day; a test that fails on a sample names its seed.
"""

from __future__ import annotations

import datetime
import itertools
import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

EVERY = bool(os.environ.get("HOMELAB_EVERY_CUT"))
# In the environment, so that all processes of a run have the same one, also where it goes on after midnight.
SEED = os.environ.setdefault("HOMELAB_SEED", datetime.datetime.now(datetime.UTC).date().isoformat())


def drawn(name: str) -> random.Random:
    """Random numbers of the day, for one test."""
    return random.Random(f"{SEED} {name}")


def sample(moments: Sequence[T], most: int, name: str) -> list[T]:
    """Those that are tried, in their order."""
    if EVERY or len(moments) <= most:
        return list(moments)
    return [moments[number] for number in sorted(drawn(name).sample(range(len(moments)), most))]


def paired(rows: Sequence[T], columns: Sequence[U], name: str) -> list[tuple[T, U]]:
    """Fields of a matrix: each row and each column once a day at least, with others another day."""
    if EVERY:
        return list(itertools.product(rows, columns))
    most, of_day = max(len(rows), len(columns)), drawn(name)
    left, right = of_day.sample(list(rows), len(rows)), of_day.sample(list(columns), len(columns))
    return [(left[number % len(left)], right[number % len(right)]) for number in range(most)]
