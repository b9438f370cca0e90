"""The nodes of a whole host's cards, and what stands against a card in a container: as a reading says it, and as a boot makes them."""

from __future__ import annotations

import json
from pathlib import Path

from homelab.container import plan as container_plan
from homelab.container.plan import as_given, judge_container
from homelab.facts import host as facts
from homelab.host import plan
from homelab.settings import Container
from homelab.vm.plan import UNFINISHED
from remote_scripts.notes.container_note import Cards, ContainerNote, Given
from remote_scripts.notes.guest_note import identity
from remote_scripts.pve.container_conf import conf_text, options_of
from remote_scripts.tools.plain import to_plain
from tests.boot_layers import Asked, read_host
from tests.lab.boots_kit import BootingHost
from tests.lab.test_real_hosts import read
from tests.unit.hosts import settings

AMD = "0000:0c:00.0"
NODES = Asked("nvidia_nodes", {"needed": True})
CAPABILITIES = {"/dev/nvidia-caps/nvidia-cap1": "400", "/dev/nvidia-caps/nvidia-cap2": "444"}


def test_a_reading_says_which_nodes_each_card_has_and_who_has_them(tmp_path: Path) -> None:
    host = BootingHost(tmp_path, "phoenix")
    text = (host.root / "etc/pve/lxc/901.conf").read_text(encoding="utf-8")
    note = ContainerNote(
        identity=identity(options_of(conf_text(text))),
        given=Given(cards=Cards(minors=(0,), cards=(f"{AMD}=render",))),
        before={"dev0": None},
    )
    path = host.root / "etc/pve/homelab/lxc-901"
    path.parent.mkdir()
    path.write_text(json.dumps(to_plain(note)))
    found = facts.parse(json.loads(host.ask("read", read_host()).stdout))
    assert {address: (one.card, one.render, one.kfd) for address, one in found.drm.items()} == {
        "0000:01:00.0": ("card0", "renderD128", False),
        "0000:02:00.0": ("card1", "renderD129", False),
        AMD: ("card2", "renderD130", True),
    }
    steps = judge_container(as_given("ai", 901, found), found).steps
    # NVIDIA's own nodes in /dev/dri come by NVIDIA's functions.
    assert found.container_note(901) == note and "renderD128" not in " ".join(steps)
    assert "dev0: not there -> /dev/nvidia0" in steps
    assert any("-> /dev/dri/renderD130" in line for line in steps)
    assert steps[-1] == UNFINISHED and "/dev/kfd" in found.nodes


def nodes(host: BootingHost) -> dict[str, str]:
    """Path -> major:minor (hexadecimal) and mode, of all that is there."""
    text = host.output(
        'cd "$HOMELAB_ROOT"; for path in dev/nvidia* dev/nvidia-caps/*; do stat -c "/%n %t:%T %a" "$path"; done'
    )
    found = dict(line.split(" ", 1) for line in text.splitlines())
    return {path: about for path, about in found.items() if path != "/dev/nvidia-caps"}


def test_nodes_for_mig_have_the_drivers_numbers_and_modes(tmp_path: Path) -> None:
    phoenix = BootingHost(tmp_path, "phoenix")
    before = nodes(phoenix)
    major = phoenix.output('awk \'$2 == "nvidia-caps" { printf "%x", $1 }\' "$HOMELAB_ROOT/proc/devices"')
    phoenix.output('rm -r "$HOMELAB_ROOT/dev/nvidia-caps"')
    phoenix.all("apply", NODES)
    made = nodes(phoenix)
    assert {path: made[path] for path in CAPABILITIES} == {
        path: f"{major}:{path[-1]} {mode}" for path, mode in CAPABILITIES.items()
    }
    assert made == before


def test_at_a_boot_the_nodes_are_there_before_a_container_that_needs_them_starts(tmp_path: Path) -> None:
    host = BootingHost(tmp_path, "mixed")
    conf = host.root / "etc/pve/lxc/201.conf"
    conf.write_text(conf.read_text() + "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidia-uvm,mode=0666\n")
    host.restart()
    assert host.output("pct status 201") == "status: stopped\n", "nobody else makes them in time"
    host.all("apply", NODES)
    host.restart()
    assert host.output("pct status 201") == "status: running\n"
    assert host.output("systemctl is-active homelab-nvidia-nodes.service") == "active\n"


def stands_against(machine: BootingHost) -> str:
    """What keeps container 901 of a host from the driver's first two cards."""
    found = read(machine.machine)
    want = plan.wanted(found, settings({}))
    one = Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0,1"})
    wish = container_plan.wish_of("phoenix", one, found, want.gpus, container_plan.cards(found, want.gpus, {}))
    return "\n".join(map(str, container_plan.judge_container(wish, found).refusals))


def test_what_stands_against_a_card_in_a_container_is_read_from_its_host(tmp_path: Path) -> None:
    """What is said of it, and what takes no host: tests/unit/test_containers.py."""
    machine = BootingHost(tmp_path, "phoenix")
    assert stands_against(machine) == ""
    config = machine.root / "etc/pve/qemu-server/103.conf"
    before = config.read_text()
    config.write_text(f"{before}hostpci0: 0000:02:00\n")
    said = stands_against(machine)
    assert "card 1 (gpuAssignment)" in said and "0000:02:00 is given to VM 103 (Sandbox)" in said, said
    device = machine.root / "sys/bus/pci/devices/0000:02:00.0"
    machine.output(
        f"modprobe vfio-pci; echo vfio-pci >{device}/driver_override; echo 0000:02:00.0 >{device}/driver/unbind; "
        f"echo 0000:02:00.0 >{machine.root}/sys/bus/pci/drivers_probe"
    )
    said = stands_against(machine)
    assert "0000:02:00 is bound to vfio-pci for VM 103 (Sandbox)" in said, said
    config.write_text(before)

    blacklist = machine.root / "etc/modprobe.d/no-nvidia.conf"
    blacklist.write_text("blacklist nvidia\nblacklist nvidia_drm\nblacklist nvidia_uvm\n")
    machine.output("update-initramfs -u -k all")
    machine.restart()
    said = stands_against(machine)
    assert "NVIDIA's driver loaded on the host" in said and "installed and not loaded" in said, said
    driver = read(machine.machine).nvidia
    assert (driver.version, driver.installed) == ("", True)


def test_a_host_without_the_driver_has_no_card_for_a_container(tmp_path: Path) -> None:
    machine = BootingHost(tmp_path, "rtx5090")
    (machine.root / "etc/pve/lxc/901.conf").write_text("arch: amd64\nhostname: box\nmemory: 512\nunprivileged: 1\n")
    said = stands_against(machine)
    assert "NVIDIA's driver loaded on the host" in said and "the driver isn't installed" in said, said
    assert not read(machine.machine).nvidia.installed
