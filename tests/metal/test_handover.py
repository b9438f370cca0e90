"""A card that goes from a container to a VM and back on a real kernel: vfio-pci, driver_override, /proc and systemd as they are.

In the place of NVIDIA's driver there is a module of this tier's own (driver/nvidia.c), which does with a card's users what that one does: its
remove() waits for them. `qm` and `nvidia-smi` are stand-ins (guest/). The VM is QEMU, emulated within the emulation.
"""

from __future__ import annotations

import json
import re

import pytest

from homelab.remote import agent
from remote_scripts.both import handover, hookscript, read_host
from remote_scripts.notes.card import Card
from tests import sent_along
from tests.host import HostError
from tests.metal.host import BUILD, CARD, IDS, NEIGHBOUR, REPORT, Hosts, half_of_test, own_drivers
from tests.metal.image import GUEST
from tests.metal.machine import Machine
from tests.metal.test_lxc import CONTAINER as A_CONTAINER
from tests.metal.test_lxc import CTID

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]

VMID = 103
BIG = Card(name="big", functions={one: IDS[one[-2:]] for one in CARD}, vms=(VMID,))
PROGRAM = "/usr/local/sbin/homelab-handover"
STATE = "/var/lib/homelab/handover/big.state"
# Its init has the card open, as a service in it would.
CONF = """\
arch: amd64
hostname: ai-lab
unprivileged: 0
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
"""
_HOLD = f"""\
printf '#!/bin/sh\\nexec 3</dev/nvidia0 || echo no card\\nwhile :; do /bin/sleep 3600; done\\n' >/var/lib/lxc/{CTID}/rootfs/bin/idle
"""
# Every card from Debian's driver to the one in NVIDIA's place, which is loaded by its name alone.
_DRIVER = f"""
set -e
for card in {CARD[0]} {NEIGHBOUR[0]}; do echo $card >/sys/bus/pci/drivers/bochs-drm/unbind; done
install -D -m 644 /var/lib/driver/nvidia.ko /lib/modules/$(uname -r)/extra/nvidia.ko
depmod
modprobe nvidia
rm -f /dev/nvidia*
"""


def drivers(machine: Machine) -> list[str]:
    """Of the card's functions and of the one beside it."""
    found = machine.drivers()
    return [found[one] for one in (*CARD, NEIGHBOUR[0])]


def state(machine: Machine) -> str:
    return machine.run(f'grep -oP \'^{{"state": "\\K[A-Z]+\' {STATE} 2>/dev/null', check=False).strip()


def runs(machine: Machine) -> bool:
    return "running" in machine.run(f"pct status {CTID}")


def has_it_open(machine: Machine) -> list[str]:
    """Which programs have /dev/nvidia0 open, by its numbers."""
    seen = "stat -L -c '%t:%T %n' /proc/[0-9]*/fd/* 2>/dev/null | sed -n 's/^c3:0 .proc.\\([0-9]*\\).*/\\1/p' | sort -u"
    return machine.run(f"for pid in $({seen}); do cat /proc/$pid/comm; done").split()


def write(machine: Machine, path: str, text: str, mode: str = "644") -> None:
    machine.run(f"mkdir -p {path.rpartition('/')[0]}; cat >{path}; chmod {mode} {path}", input=text)


@pytest.fixture(scope="module")
def shared(hosts: Hosts) -> str:
    """A snapshot with the IOMMU on, both cards with the driver, a container that has one of them open, and VM 103, which takes it."""
    machine = hosts.intel()
    machine.run("sed -i 's/intel_iommu=off/intel_iommu=on iommu=pt/' /etc/default/grub; update-grub")
    machine.reboot()
    assert machine.run("ls /sys/kernel/iommu_groups") != ""
    machine.run("bash -s", input=A_CONTAINER + _DRIVER + _HOLD)
    for name in ("pct", "qm", "nvidia-smi"):
        write(machine, f"/usr/local/sbin/{name}", (GUEST / name).read_text(), "755")
    write(machine, "/etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent iso,snippets\n")
    write(machine, f"/etc/pve/lxc/{CTID}.conf", CONF)
    write(machine, f"/etc/pve/qemu-server/{VMID}.conf", f"hostpci0: {CARD[0][:-2]},driver=keep,pcie=1\nargs: -S\n")
    for layer, wanted in (("handover", handover.Wanted(cards=(BIG,))), ("hookscript", hookscript.Wanted(vmid=VMID))):
        text = sent_along.text("apply", agent.request(layer, wanted))
        machine.run(agent.command_in_memory("root"), input=text)
    machine.run(f"{PROGRAM} step_attach big; pct start {CTID}")
    assert drivers(machine) == ["nvidia", own_drivers(CARD[1])[CARD[1]], "nvidia"]
    machine.save("shared")
    return "shared"


@pytest.fixture
def host(hosts: Hosts, shared: str) -> Machine:
    return hosts.intel(shared)


def is_as_before(machine: Machine, neighbour: str = "nvidia") -> None:
    """The card with its drivers and its number, nothing overridden, and the container with it."""
    assert drivers(machine) == ["nvidia", "snd_hda_intel", neighbour], machine.run("cat /var/lib/homelab/handover/log")
    overrides = machine.run(
        f"cd /sys/bus/pci/devices; cat {' '.join(f'{one}/driver_override' for one in CARD)}"
    ).split()
    assert overrides == ["(null)", "(null)"]
    assert "Device Minor: \t 0" in machine.run(f"cat /proc/driver/nvidia/gpus/{CARD[0]}/information")
    assert runs(machine) and "idle" in has_it_open(machine)


def test_a_vm_gets_the_card_ends_and_the_driver_and_the_container_have_it_back(host: Machine) -> None:
    is_as_before(host)
    folder = "/run/homelab-passthrough-test"
    kernel, initrd, append = half_of_test(host, BUILD)
    told = f'-kernel {kernel} -initrd {initrd} -append "{append}" -serial file:{folder}/console'
    host.run(f"sed -i 's|^args: .*|args: {told}|' /etc/pve/qemu-server/{VMID}.conf")
    host.run(f"qm start {VMID}", seconds=600)
    assert drivers(host) == ["vfio-pci", "vfio-pci", "nvidia"] and state(host) == "VM" and not runs(host)
    assert host.run(f"cat /sys/bus/pci/devices/{CARD[0]}/driver_override").strip() == "vfio-pci"
    # It ends by itself; qmeventd's cleanup calls post-stop, and a unit of its own brings the card back.
    host.run(f"while [ -e {STATE} ]; do sleep 1; done", seconds=900)
    seen = half_of_test(host, REPORT)
    assert [one["id"] for one in seen["functions"]] == [IDS[one[-2:]] for one in CARD], "the VM has seen it"
    is_as_before(host)
    assert host.run("systemctl list-units --all --plain --no-legend 'homelab-handover-*' 'vm-*'") == ""


def test_the_only_card_goes_with_its_modules_and_comes_back_with_them(host: Machine) -> None:
    host.run(
        f"echo {NEIGHBOUR[0]} >/sys/bus/pci/drivers/nvidia/unbind; echo vfio-pci >/sys/bus/pci/devices/{NEIGHBOUR[0]}/driver_override"
    )
    host.run(f"qm start {VMID}", seconds=600)
    assert drivers(host)[:2] == ["vfio-pci", "vfio-pci"] and not runs(host)
    assert "nvidia" not in host.run("lsmod | cut -d ' ' -f 1").split()
    host.run(f"qm stop {VMID}; while [ -e {STATE} ]; do sleep 1; done", seconds=600)
    is_as_before(host, "vfio-pci")


def test_a_program_of_the_hosts_that_has_it_is_named_and_all_is_as_before(host: Machine) -> None:
    host.run("systemd-run --quiet --unit=ollama bash -c 'exec 3</dev/nvidia0; sleep 3600'")
    with pytest.raises(HostError, match=r"in use by sleep \(PID \d+ of ollama.service\)"):
        host.run(f"qm start {VMID}", seconds=600)
    assert state(host) == "HELD"
    host.run("systemctl stop ollama")
    is_as_before(host)


def test_an_unbind_that_never_ends_holds_nobody(host: Machine) -> None:
    host.run("echo Y >/sys/module/nvidia/parameters/held")
    before = float(host.run("cut -d ' ' -f 1 /proc/uptime"))
    with pytest.raises(HostError, match="moving it to vfio-pci has not come to an end"):
        host.run(f"qm start {VMID}", seconds=300)
    took = float(host.run("cut -d ' ' -f 1 /proc/uptime")) - before
    assert state(host) == "STUCK" and not runs(host) and took < 240
    assert "non-zero usage count" in host.run("dmesg")
    waiting = host.run("systemctl show -P MainPID homelab-handover-big-step_bind.service").strip()
    assert re.search(r"^State:\tD", host.run(f"cat /proc/{waiting}/status"), re.M), (
        "it waits in the kernel, and can't be killed"
    )
    # Nothing is tried again, by nobody, and nobody waits.
    host.run(f"{PROGRAM} reconcile", seconds=60)
    with pytest.raises(HostError, match="STUCK"):
        host.run(f"qm start {VMID}", seconds=60)
    assert host.run("qm status 103") == "status: stopped\n"
    # The host can be read, by lspci and by the program.
    output = host.run(
        agent.command_in_memory("root"),
        input=sent_along.text("read", agent.request("read_host", read_host.Wanted(acs=True))),
        seconds=300,
    )
    reading = json.loads(sent_along.answer(output))
    assert reading["handover"]["cards"]["big"]["state"] == "STUCK"
    # What the documentation advises where a reboot doesn't come to its end: it asks no device.
    host.run(f"sync; (sleep 1; {host.cut}) >/dev/null 2>&1 &", seconds=30)
    host.wait_for_reset()
    host.wait_for_ssh()
    host.run("systemctl is-system-running --wait", check=False)  # its service runs beside sshd
    assert state(host) == "" and drivers(host)[0] == "bochs-drm"
