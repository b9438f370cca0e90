"""NVIDIA's device nodes on a whole host: what the service makes, also MIG's, and when at a boot it makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot_layers import Asked
from tests.scripts.test_on_a_host import Host

NODES = Asked("nvidia_nodes", {"needed": True})
CAPABILITIES = {"/dev/nvidia-caps/nvidia-cap1": "400", "/dev/nvidia-caps/nvidia-cap2": "444"}


@pytest.fixture
def phoenix(tmp_path: Path) -> Host:
    return Host(tmp_path, "phoenix")


def apply(host: Host, script: Asked) -> None:
    done = host.run("apply", script)
    assert done.returncode == 0, done.stdout + done.stderr


def nodes(host: Host) -> dict[str, str]:
    """Path -> major:minor (hexadecimal) and mode, of all that is there."""
    text = host.bash('cd "$ROOT"; for path in dev/nvidia* dev/nvidia-caps/*; do stat -c "/%n %t:%T %a" "$path"; done')
    found = dict(line.split(" ", 1) for line in text.splitlines())
    return {path: about for path, about in found.items() if path != "/dev/nvidia-caps"}


def reboot(host: Host) -> None:
    host.machine.shutdown()
    host.machine.boot("reboot")


def test_nodes_for_mig_have_the_drivers_numbers_and_modes(phoenix: Host) -> None:
    before = nodes(phoenix)
    major = phoenix.bash('awk \'$2 == "nvidia-caps" { printf "%x", $1 }\' "$ROOT/proc/devices"')
    phoenix.bash('rm -r "$ROOT/dev/nvidia-caps"')
    apply(phoenix, NODES)
    made = nodes(phoenix)
    assert {path: made[path] for path in CAPABILITIES} == {
        path: f"{major}:{path[-1]} {mode}" for path, mode in CAPABILITIES.items()
    }
    assert made == before


def test_at_a_boot_the_nodes_are_there_before_a_container_that_needs_them_starts(tmp_path: Path) -> None:
    host = Host(tmp_path, "mixed")
    conf = host.root / "etc/pve/lxc/201.conf"
    conf.write_text(conf.read_text() + "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidia-uvm,mode=0666\n")
    reboot(host)
    assert host.bash("pct status 201") == "status: stopped\n", "nobody else makes them in time"
    apply(host, NODES)
    reboot(host)
    assert host.bash("pct status 201") == "status: running\n"
    assert host.bash("systemctl is-active homelab-nvidia-nodes.service") == "active\n"
