"""The layer judge_guests: what Proxmox VE's own code says against guests that are to be made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from remote_scripts.both.judge_guests import Wanted
from remote_scripts.tools.done import Done
from tests.agent.kit import Host
from tests.agent.reading_kit import link

WANTED = Wanted(vms={"dev": {"vmid": "200", "cores": "eight"}}, containers={"ai": {}})


def test_proxmox_ves_own_code_is_asked_once_for_all_guests(host: Host) -> None:
    asked: list[str] = []

    def perl(words: Sequence[str], stdin: bytes) -> str:
        asked.append(stdin.decode())
        assert 'map_method_by_name("create_vm")' in words[-1]
        return json.dumps({"dev": {"cores": "type check failed"}})

    host.programs["perl"] = perl
    answer = host.ask("read", "judge_guests", WANTED)
    assert answer == {"mistakes": {"dev": {"cores": "type check failed"}}, "unjudged": ""}
    assert json.loads(*asked) == {"vms": WANTED.vms, "containers": WANTED.containers, "devices": []}


def test_a_device_that_the_host_uses_is_a_mistake_also_of_a_guest_that_is_there(host: Host) -> None:
    """As sysfs has them; what is in use: tests/agent/test_read_vital.py."""
    host.programs["perl"] = lambda _words, _stdin: json.dumps({"dev": {"cores": "no"}})
    adapter = "/sys/devices/pci0000:00/0000:00:14.0/usb1/1-4/1-4:1.0"
    host.write(f"{adapter}/net/enx0/flags", "0x1003\n")
    link(host, f"{adapter}/net/enx0/device", adapter)
    host.write(f"{adapter}/uevent", "DRIVER=r8152\nPRODUCT=bda/8153/3100\n")
    link(host, "/sys/class/net/enx0", f"{adapter}/net/enx0")
    of_dev = (("dev", "usb0", "PRODUCT=bda/8153/"), ("dev", "usb1", "/1-5/"))
    devices = (*of_dev, ("made", "usb0", "/1-4/"), ("made", "scsi1", "/dev/sdq"))
    found = host.ask("read", "judge_guests", replace(WANTED, devices=devices))["mistakes"]
    used = "the host uses it: the network interface enx0 is up"
    assert found == {"dev": {"cores": "no", "usb0": used}, "made": {"usb0": used}}


@pytest.mark.parametrize(
    ("done", "why"),
    [
        (Done(2, b"", b"Can't locate PVE/API2/Qemu.pm in @INC"), "Can't locate PVE/API2/Qemu.pm in @INC"),
        (Done(124, b""), "no answer in time"),
    ],
)
def test_where_its_modules_cant_be_loaded_nothing_is_judged_and_that_is_said(host: Host, done: Done, why: str) -> None:
    host.programs["perl"] = lambda _words, _stdin: done
    assert host.ask("read", "judge_guests", WANTED) == {"mistakes": {}, "unjudged": why}
