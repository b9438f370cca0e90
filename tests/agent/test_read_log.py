"""The layer read_log: the end of what long commands have said, of a host or of one of its containers."""

from __future__ import annotations

import pytest

from remote_scripts.both.read_log import Wanted
from tests.agent.kit import Host, Refused

STEPS = "/run/homelab/steps"
LINES = """\
2026-11-25 10:00:00 building: dkms install
  Building module: é
2026-11-25 10:01:00 container 901: apt: apt-get install x
  Unpacking x
  container 902: no heading
2026-11-25 10:02:00 container 90: apt-get update
  Hit:1
"""


def test_the_end_of_it_and_what_a_container_has_of_it(host: Host) -> None:
    assert host.ask("read", "read_log", Wanted(lines=10)) == {"log": ""}
    host.write(STEPS, LINES)
    assert host.ask("read", "read_log", Wanted(lines=200)) == {"log": LINES.rstrip("\n")}
    assert host.ask("read", "read_log", Wanted(lines=2)) == {"log": "\n".join(LINES.splitlines()[-2:])}
    assert host.ask("read", "read_log", Wanted(lines=0)) == {"log": ""}
    of_901 = host.ask("read", "read_log", Wanted(lines=200, of="container 901"))
    assert of_901 == {"log": "\n".join(LINES.splitlines()[2:5])}


def test_one_that_cant_be_read_is_said(host: Host) -> None:
    (host.root / STEPS[1:]).mkdir(parents=True)
    with pytest.raises(Refused, match="to read /run/homelab/steps"):
        host.ask("read", "read_log", Wanted(lines=10))
