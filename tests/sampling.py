"""Which moments a sweep tries: the same ones in each run of `make test` by hand, so that what fails is the change; others with another seed.

Of the tests with `@pytest.mark.one_of("killed runs")` and the same words, one is tried (tests/conftest.py).

HOMELAB_SEED=7: others; a run that fails names its seed. HOMELAB_SEED=7:2/4: the second of four runs that together try four times as much (ci.yml).
HOMELAB_EVERY_CUT=1: every moment (`make test-nightly`); HOMELAB_SHARD=3/8: of all tests the third eighth.
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
_OF_ALL, _, _share = SEED.partition(":")
#: How many of the runs that share a seed come before this one.
_BEFORE = int(_share.partition("/")[0] or 1) - 1


def drawn(name: str) -> random.Random:
    """Random numbers of the seed, for one test."""
    return random.Random(f"{SEED} {name}")


def sample(moments: Sequence[T], most: int, name: str) -> list[T]:
    """Those that are tried, in their order."""
    if EVERY or len(moments) <= most:
        return list(moments)
    of_seed, every = random.Random(f"{_OF_ALL} {name}"), range(len(moments))
    order = of_seed.sample(every, most)
    order += of_seed.sample([number for number in every if number not in order], len(moments) - most)
    return [moments[one] for one in sorted(order[(_BEFORE * most + one) % len(order)] for one in range(most))]


def of_shard(items: Sequence[T]) -> list[T]:
    """Those of this run, where several share them all."""
    number, shards = map(int, (os.environ.get("HOMELAB_SHARD") or "1/1").split("/"))
    return [*items[number - 1 :: shards]]


def paired(rows: Sequence[T], columns: Sequence[U], name: str) -> list[tuple[T, U]]:
    """Fields of a matrix: each row and each column once at least, with others for another seed."""
    if EVERY:
        return list(itertools.product(rows, columns))
    most, of_seed = max(len(rows), len(columns)), drawn(name)
    left, right = of_seed.sample(list(rows), len(rows)), of_seed.sample(list(columns), len(columns))
    return [(left[number % len(left)], right[number % len(right)]) for number in range(most)]
