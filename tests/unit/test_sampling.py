"""What a run tries of many moments, and what several try together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml

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


@pytest.mark.skipif(sys.platform == "win32", reason="the hosts and the advice are simulated hosts'")
def test_the_documents_say_how_much_is_tried() -> None:

    def matrix(workflow: str, job: str) -> list[int]:
        """The numbers of a job's runs."""
        jobs = yaml.safe_load((PROJECT / ".github/workflows" / workflow).read_text())["jobs"]
        runs = jobs[job]["strategy"]["matrix"]
        return runs.get("shard") or [one["share"] for one in runs["include"]]

    from tests.e2e.test_voices import STATES
    from tests.lab.test_advice import CURES
    from tests.lab.test_bound_hosts import SLOTS

    shares, shards = matrix("ci.yml", "test"), matrix("nightly.yml", "test")
    assert (shares, shards) == ([*range(1, 5)], [*range(1, 9)]), "four Pythons, eight shards"
    (stops,) = re.findall(r"^SAMPLE = (\d+)$", (PROJECT / "tests/agent/test_stops.py").read_text(), re.M)
    tests = "".join(path.read_text() for path in (PROJECT / "tests/e2e").glob("test_*.py"))
    roads = Counter(re.findall(r'one_of\("(.+)"\)', tests))
    assert max(roads.values()) <= len(shares), "a push shows each road of a kind"
    hosts, advice = len(SLOTS), len({row for _, row in CURES})

    def row(all_of_it: int, most: int, always: int = 0) -> list[str]:
        return [str(always + min(times * most, all_of_it - always)) for times in (1, len(shares))] + [str(all_of_it)]

    section = (PROJECT / "docs/tiers.md").read_text().partition("\n## How much")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z].+) \| (.+) \| (.+) \| (.+) \|$", section, re.M)
    assert [[*of[1:]] for of in rows] == [
        [stops, str(len(shares) * int(stops)), "all"],
        [str(len(roads)), str(roads.total()), str(roads.total())],
        row(hosts, 3, always=1),
        row(advice, 8),
        row(3 * STATES, 1),
    ]
    assert f" {len(roads)} kinds" in rows[1][0]
