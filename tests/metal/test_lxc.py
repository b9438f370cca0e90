"""Device nodes in a container, by the lines that the program writes, taken by the real lxc and the real control groups.

There is no NVIDIA driver here: its nodes have numbers behind which nobody is (ENXIO once they may be opened, EPERM before). The card's
node in /dev/dri has its real driver, and opens.
"""

from __future__ import annotations

import pytest

from homelab.remote import agent
from remote_scripts.both.container_verification import Wanted as ContainerVerification
from remote_scripts.notes.container_note import Cards, mount_lines
from tests import sent_along
from tests.boot_layers import Asked
from tests.host import BUSYBOX
from tests.metal.host import CARD, Hosts
from tests.metal.image import GUEST
from tests.metal.machine import Machine

pytestmark = [pytest.mark.metal, pytest.mark.timeout(3600)]

CTID = 901
CARDS = Cards(method="mount-entry", minors=(0,), functions=(CARD[0],))
VERIFICATION = Asked("container_verification", ContainerVerification(ctid=CTID, cards=CARDS))
CONF = "arch: amd64\nhostname: ai-lab\nunprivileged: 0\nlxc.cgroup2.devices.allow: c 10:200 rwm\n"

CONTAINER = f"""
set -e
root=/var/lib/lxc/{CTID}/rootfs
mkdir -p /etc/pve/nodes/$(hostname)/{{lxc,qemu-server}}
{BUSYBOX}
ln -sfn nodes/$(hostname) /etc/pve/local
ln -sfn local/lxc local/qemu-server /etc/pve
printf '#!/bin/sh\\nwhile :; do /bin/sleep 3600; done\\n' >$root/bin/idle
chmod 755 $root/bin/idle
cat >/var/lib/lxc/{CTID}/base <<'BASE'
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = ai-lab
lxc.rootfs.path = dir:/var/lib/lxc/{CTID}/rootfs
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.init.cmd = /bin/idle
BASE
mknod -m 666 /dev/nvidia0 c 195 0
mknod -m 666 /dev/nvidiactl c 195 255
mknod -m 666 /dev/nvidia-uvm c 510 0
"""


def nodes(machine: Machine) -> list[str]:
    """Of the cards."""
    drm = machine.run(f"ls /sys/bus/pci/devices/{CARD[0]}/drm").split()
    return ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/dri/{name}" for name in drm)]


def numbers(machine: Machine, path: str) -> str:
    return machine.run(f"echo $((0x$(stat -c %t {path}))):$((0x$(stat -c %T {path})))").strip()


def verification(machine: Machine) -> str:
    output = machine.run(agent.command_in_memory("root"), input=VERIFICATION.sent("apply"), check=False)
    return sent_along.answer(output)


def test_a_container_may_open_what_its_lines_allow_and_nothing_else(hosts: Hosts) -> None:
    def opened(path: str) -> str:  # by the container's root: what that is told; empty: it opens
        said = machine.run(f"pct exec {CTID} -- dd if={path} of=/dev/null count=0 2>&1", check=False)
        return "" if "records in" in said else said

    machine = hosts.intel()
    machine.run("bash -s", input=CONTAINER)
    machine.run("cat >/usr/local/sbin/pct && chmod 755 /usr/local/sbin/pct", input=(GUEST / "pct").read_text())
    machine.run(f"cat >/etc/pve/lxc/{CTID}.conf", input=CONF)
    card = machine.run(f"basename $(readlink /dev/dri/by-path/pci-{CARD[0]}-card)").strip()

    # As the layer container_cards writes them, which needs Proxmox VE's API.
    written = CONF + "".join(
        f"{line}\n" for path in nodes(machine) for line in mount_lines(path, numbers(machine, path))
    )
    machine.run(f"cat >/etc/pve/lxc/{CTID}.conf; pct start {CTID}", input=written)
    # Allowed, and nobody is behind their numbers; the card's own node opens. The first that doesn't ends the verification.
    said = verification(machine)
    assert "/dev/nvidia0: root: no driver is behind it" in said, said
    for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        assert "No such device or address" in opened(path)
    assert opened(f"/dev/dri/{card}") == ""

    # The same without its rules: there, and not to be opened.
    rules = r"lxc\.cgroup2\.devices\.allow: c (195:0|226:[0-9]+) "
    machine.run(f"sed -i -E '/^{rules}/d' /etc/pve/lxc/{CTID}.conf; pct stop {CTID}; pct start {CTID}")
    said = verification(machine)
    assert "/dev/nvidia0: root: " in said and "control group" in said, said
    assert "Operation not permitted" in opened(f"/dev/dri/{card}")
    assert "No such device or address" in opened("/dev/nvidiactl")

    # Mended, and given back.
    machine.run(f"cat >/etc/pve/lxc/{CTID}.conf; pct stop {CTID}; pct start {CTID}", input=written)
    assert opened(f"/dev/dri/{card}") == ""
    machine.run(f"cat >/etc/pve/lxc/{CTID}.conf; pct stop {CTID}; pct start {CTID}", input=CONF)
    assert "Operation not permitted" in machine.run(
        f"mknod -m 666 /var/lib/lxc/{CTID}/rootfs/tmp/nvidia0 c 195 0; "
        f"pct exec {CTID} -- dd if=/tmp/nvidia0 of=/dev/null count=0 2>&1",
        check=False,
    )
