"""A container's restart: what it runs with, what its configuration says, and that it runs again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests.kept_systems import KeptSystems
from tests.scripts.test_on_a_host import Host

CTID = 901
SHUTDOWN = {"timeout": 2, "otherwise": "fail"}


class Box:
    """Container 901, which runs, on a host with two cards."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.path = host.root / f"etc/pve/lxc/{CTID}.conf"
        self.record = host.root / f"var/lib/homelab/containers/{CTID}"
        host.bash(f"pct start {CTID} 2>/dev/null; :")

    def runs(self) -> bool:
        return "running" in self.host.bash(f"pct status {CTID}")

    def gpus(self, minors: str = "0", verb: str = "apply") -> tuple[bool, str]:
        done = self.host.run(verb, scripts.container_gpus(CTID, _devices(minors), SHUTDOWN, "0"))
        return done.returncode == 0, done.stdout

    def restart(self, minors: str = "0", power: str = "keep") -> tuple[bool, str]:
        done = self.host.run("apply", scripts.container_restart(CTID, _devices(minors), SHUTDOWN, power))
        return done.returncode == 0, done.stdout


def _devices(minors: str) -> dict[str, str]:
    return {"METHOD": "mount-entry", "MINORS": minors, "FUNCTIONS": ""}


@pytest.fixture
def box(kept_systems: KeptSystems) -> Box:
    return kept_systems.take("box", lambda place: Box(Host(place, "phoenix")))


BROKEN = "lxc.mount.entry: /nonexistent opt/x none bind\n"


@pytest.fixture
def left_off(kept_systems: KeptSystems) -> Box:
    """It didn't start after its restart, and could by now."""

    def make(place: Path) -> Box:
        box = Box(Host(place, "phoenix"))
        box.path.write_text(box.path.read_text() + BROKEN)
        assert box.gpus()[0] and not box.restart()[0]
        box.path.write_text(box.path.read_text().replace(BROKEN, ""))
        return box

    box = kept_systems.take("left off", make)
    # It was now, also where it was kept for a while.
    _, _, rest = (box.record / "ran").read_text().partition(" ")
    (box.record / "ran").write_text(f"{int(time.time())} {rest}")
    return box


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_container_that_didnt_start_after_its_restart_is_started_by_the_next_run(box: Box, verb: str) -> None:
    stock = box.path.read_text()
    if verb == "revert":
        assert box.gpus()[0] and box.restart()[0]
    box.path.write_text(box.path.read_text() + BROKEN)
    if verb == "apply":
        assert box.gpus()[0]
        ended, said = box.restart()
    else:
        ended, said = box.gpus(verb="revert")
    assert not ended and "it is off now" in said and not box.runs()
    box.path.write_text(box.path.read_text().replace(BROKEN, ""))
    if verb == "revert":
        assert box.gpus(verb="revert")[0] and box.runs() and box.path.read_text() == stock
        assert not box.record.exists()
        return
    assert box.gpus()[0]
    ended, said = box.restart()
    assert ended and json.loads(said) == {"state": "running", "restarted": "yes"} and box.runs()
    # What somebody switches off after that stays off.
    box.host.bash(f"pct shutdown {CTID}")
    assert box.gpus()[0] and box.restart()[0] and not box.runs()


def test_one_that_somebody_has_started_since_and_switched_off_stays_off(left_off: Box) -> None:
    left_off.host.bash(f"pct start {CTID}")
    assert left_off.gpus()[0] and left_off.restart()[0]
    left_off.host.bash(f"pct shutdown {CTID}")
    assert left_off.gpus()[0] and left_off.restart()[0] and not left_off.runs()


@pytest.mark.parametrize("gone", ["by hand, after a start", "another boot", "another one", "long ago", "nothing in it"])
def test_one_that_a_run_has_left_off_is_started_only_where_nobody_can_have_switched_it_off(
    left_off: Box, gone: str
) -> None:
    at, boot, off, known = (left_off.record / "ran").read_text().split(" ")
    assert off == "yes"
    if gone == "by hand, after a start":  # and no run in between; a start of the note's own second isn't a later one
        (left_off.record / "ran").write_text(f"{int(at) - 5} {boot} yes {known}")
        left_off.host.bash(f"pct start {CTID} && pct shutdown {CTID}")
    elif gone == "another boot":
        (left_off.record / "ran").write_text(f"{at} another yes {known}")
    elif gone == "another one":
        (left_off.record / "ran").write_text(f"{at} {boot} yes AA:AA:AA:00:00:00\n")
    elif gone == "long ago":
        (left_off.record / "ran").write_text(f"{int(at) - 3600} {boot} yes {known}")
    else:
        (left_off.record / "ran").write_text("")
    ended, said = left_off.restart()
    assert ended and json.loads(said) == {"state": "stopped", "restarted": "no"}
    assert not left_off.runs() and not (left_off.record / "ran").exists()


@pytest.mark.parametrize("whose", ["the run's", "somebody's", "nobody's"])
def test_a_run_that_was_killed_around_its_shutdown_starts_it_again_only_if_that_was_its_own(
    box: Box, whose: str
) -> None:
    assert box.gpus()[0]
    addresses = box.host.bash(f"sed -n 's/.*hwaddr=\\([^,]*\\).*/\\1/p' {box.path}").strip()
    boot = (box.host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    at = int(box.host.bash("date +%s")) - (0 if whose == "the run's" else 120)
    (box.record / "ran").write_text(f"{at} {boot} no {addresses}\n")
    box.host.bash(f"pct shutdown {CTID}")
    if whose == "nobody's":  # such as `poweroff` inside
        for path in (box.host.root / "var/log/pve/tasks").glob("*"):
            if path.is_file():
                path.write_text("")
    assert box.restart()[0] and box.runs() is (whose == "the run's")


def test_one_that_doesnt_go_off_has_its_configuration_as_before(box: Box) -> None:
    stock = box.path.read_text()
    assert box.gpus()[0] and box.path.read_text() != stock
    box.host.machine.set_fault("guest-ignores-shutdown", CTID)
    ended, said = box.restart()
    assert not ended and "its configuration is as it was before" in said
    assert box.path.read_text() == stock and box.runs() and not (box.record / "ran").exists()


@pytest.mark.parametrize("more", ["0", "0 1"], ids=["the same cards", "another card"])
def test_what_somebody_has_changed_since_is_never_put_back(box: Box, more: str) -> None:
    assert box.gpus()[0]
    section = "\n[precious]\narch: amd64\nsnaptime: 1700000000\n"
    box.path.write_text(box.path.read_text().replace("memory: ", "memory: 1") + section)
    theirs = box.path.read_text().splitlines()
    assert box.gpus(more)[0]
    box.host.machine.set_fault("guest-ignores-shutdown", CTID)
    ended, said = box.restart(more)
    assert not ended and "its configuration stays as it was written" in said
    assert not set(theirs) - set(box.path.read_text().splitlines())
