"""A boot on trial, with real boot loaders: what they start when its kernel panics, or hangs and is reset, and when it is confirmed.

The agent's layers are asked without Pulumi: what counts is the loader's. Each is told by what was chosen, too.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from homelab.remote import agent
from remote_scripts.layers.cmdline import Wanted as Cmdline
from remote_scripts.layers.confirm_boot import Wanted as Confirm
from tests import sent_along
from tests.metal.host import Hosts
from tests.metal.machine import BOOT_SECONDS, Machine
from tests.metal.test_other_hosts import as_systemd_boot

pytestmark = [pytest.mark.metal, pytest.mark.timeout(7200)]

#: The kernel finds neither an init in its initramfs nor a root: it panics.
PANICS = "rdinit=/none root=/dev/none"
#: Its init never ends and starts nothing; what it prints shows that it runs.
HANGS = "init=/usr/bin/yes"
WELL = "iommu=pt"
_CHOICE = "mount -r /dev/vda2 /mnt; sed -n s/^homelab_trial=//p /mnt/homelab/grubenv; umount /mnt"
# Where they are drawn from, in seconds: an arming, or a confirmation, on an idle machine.
ACT_SECONDS = 12.0
CUTS = int(os.environ.get("CUTS") or 2)
SEED = os.environ.get("SEED", "1")


def ask(machine: Machine, verb: str, layer: str, wanted: Any) -> Any:
    text = sent_along.text(verb, agent.request(layer, wanted))
    return json.loads(sent_along.answer(machine.run(agent.command_in_memory("root"), input=text)))


def arm(machine: Machine, words: str) -> None:
    wanted = Cmdline(name="iommu", words=words, rollback_after=1800)
    assert ask(machine, "apply", "cmdline", wanted)["changed"] is True


def give_back(machine: Machine) -> None:
    ask(machine, "revert", "cmdline", Cmdline(name="iommu", words="", rollback_after=1800))


def confirm(machine: Machine) -> dict[str, Any]:
    return dict(ask(machine, "apply", "confirm_boot", Confirm()))


def words_of(machine: Machine) -> list[str]:
    return machine.run("cat /proc/cmdline").split()


def reset_when_it_hangs(machine: Machine) -> None:
    """The person at the power button."""
    console, deadline = machine.folder / "console.log", time.monotonic() + BOOT_SECONDS
    while b"y\r\ny\r\ny" not in console.read_bytes()[-4000:]:
        assert time.monotonic() < deadline, machine.last_words()
        time.sleep(1)
    machine.reset()


@pytest.fixture(params=["grub", "systemd-boot"])
def machine(hosts: Hosts, request: pytest.FixtureRequest) -> Machine:
    if request.param == "grub":
        return hosts.intel()
    found = hosts.uefi()
    as_systemd_boot(found)
    return found


def was_taken(machine: Machine) -> bool:
    """Whether the loader itself has taken the choice back."""
    if machine.run("test -s /etc/kernel/proxmox-boot-uuids && echo yes", check=False):
        return machine.run("ls /sys/firmware/efi/efivars | grep OneShot", check=False) == ""
    return machine.run(_CHOICE).strip() == "taken"


def test_a_kernel_that_stops_comes_back_with_the_old_configuration_without_userland(machine: Machine) -> None:
    before = words_of(machine)
    for words in (PANICS, HANGS):
        arm(machine, words)
        boot = machine.boot_id()
        machine.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
        machine.wait_for_reset()
        if words == HANGS:
            reset_when_it_hangs(machine)
        machine.wait_for_boot(boot, 2 * BOOT_SECONDS)
        assert words_of(machine) == before and was_taken(machine), words
        assert "has ended before it was confirmed" in confirm(machine)["rolled_back"]
        assert machine.run("ls /var/lib/homelab/trial /boot/grub/custom.cfg", check=False) == ""


def test_a_confirmed_boot_is_the_default_without_a_further_restart(machine: Machine) -> None:
    before = words_of(machine)
    arm(machine, WELL)
    machine.reboot()
    assert {WELL, "homelab.trial", "panic=30"} <= {*words_of(machine)} and was_taken(machine)
    assert confirm(machine)["confirmed"] == machine.boot_id()
    assert machine.run("cat /proc/sys/kernel/panic").strip() == "0"
    machine.reboot()
    assert words_of(machine) == [*before, WELL]
    give_back(machine)
    machine.reboot()
    assert words_of(machine) == before


def cut_during(machine: Machine, act: Callable[[Machine], object], seconds: float) -> None:
    """The plug is pulled so many seconds after the act has begun."""
    request = "arm" if act is armed else "confirm"
    wanted: Any = Cmdline(name="iommu", words=WELL, rollback_after=1800) if request == "arm" else Confirm()
    text = sent_along.text("apply", agent.request("cmdline" if request == "arm" else "confirm_boot", wanted))
    machine.run(f"cat >/run/asked; ({agent.command_in_memory('root')}) </run/asked >/dev/null 2>&1 &", input=text)
    time.sleep(seconds)
    machine.stop()
    machine.start()
    machine.wait_for_ssh()


def armed(machine: Machine) -> None:
    arm(machine, WELL)


@pytest.mark.parametrize("number", range(CUTS))
def test_a_power_cut_leaves_a_host_that_boots_the_old_or_the_new(hosts: Hosts, number: int) -> None:
    machine, moment = hosts.intel(), random.Random(f"{SEED} {number}").uniform(0, ACT_SECONDS)
    before = words_of(machine)
    if number % 2:
        arm(machine, WELL)
        machine.reboot()
        cut_during(machine, confirm, moment)
    else:
        cut_during(machine, armed, moment)
    words = words_of(machine)
    is_new = WELL in words
    assert [word for word in words if word not in (WELL, "homelab.trial", "panic=30", "softlockup_panic=1")] == before
    assert not is_new or "homelab.trial" in words or words == [*before, WELL], f"SEED={SEED} {number}"
    confirm(machine)
    give_back(machine)
    machine.reboot()
    assert words_of(machine) == before
    assert machine.run("ls -d /var/lib/homelab /boot/grub/custom.cfg", check=False) == ""
