"""What a run tries of many moments, and what several try together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT


def said(program: str, **environment: str) -> str:
    usual = {name: value for name, value in os.environ.items() if not name.startswith("HOMELAB_")}
    command = [sys.executable, "-c", f"from tests import sampling; print({program})"]
    return subprocess.check_output(command, cwd=PROJECT, env=usual | environment, text=True)


@pytest.mark.parametrize(("moments", "most"), [(2, 1), (4, 1), (10, 3), (70, 5)])
def test_four_runs_of_one_seed_try_four_times_as_much_and_each_what_it_tries_again(moments: int, most: int) -> None:
    program = f"*sampling.sample(range({moments}), {most}, 'a sweep')"
    shares = [said(program, HOMELAB_SEED=f"7:{number}/4").split() for number in range(1, 5)]
    assert all(len(share) == most for share in shares)
    assert len({one for share in shares for one in share}) == min(4 * most, moments)
    assert said(program, HOMELAB_SEED="7:1/4") == said(program, HOMELAB_SEED="7"), "the first is as one alone"
    assert said(program) == said(program) != said("*range(70)")


def test_of_what_is_drawn_by_itself_each_share_has_its_own() -> None:
    drawn = {said("sampling.drawn('x').random()", HOMELAB_SEED=f"7:{number}/4") for number in range(1, 5)}
    assert len(drawn) == 4


def test_shards_have_all_together_once() -> None:
    shards = [said("*sampling.of_shard(range(19))", HOMELAB_SHARD=f"{number}/8").split() for number in range(1, 9)]
    assert sorted(int(one) for shard in shards for one in shard) == [*range(19)]
    assert said("len(sampling.of_shard(range(19)))") == "19\n"
