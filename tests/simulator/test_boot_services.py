"""Services at a lab host's boot: which run, in which order to the guests; what a container's start then finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.host_kit import Host

NODES = """\
[Unit]
Before=pve-guests.service
After=systemd-modules-load.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/nvidia-modprobe -c 255 -c 0 -c 1
ExecStart=/usr/bin/nvidia-modprobe -u -c 0
[Install]
WantedBy=multi-user.target
"""
DEVICES = "".join(f"dev{n}: /dev/{name},mode=0666\n" for n, name in enumerate(("nvidia0", "nvidiactl", "nvidia-uvm")))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Container 201 starts with the host and has three nodes in its configuration."""
    host = Host(tmp_path, "mixed")
    conf = host.root / "etc/pve/lxc/201.conf"
    conf.write_text(conf.read_text(encoding="utf-8") + DEVICES, encoding="utf-8")
    return host


def unit(host: Host, name: str, text: str) -> None:
    host.write(f"/etc/systemd/system/{name}", text)


def order(host: Host) -> list[str]:
    return (host.root / "order").read_text(encoding="utf-8").split()


def noting(host: Host, word: str, about: str = "", wanted_by: str = "multi-user.target") -> None:
    """A service that notes its word and how many containers run."""
    count = 'find "$HOMELAB_ROOT/run/lxc" -name "*.pid" | wc -l'
    host.write(f"/usr/local/bin/{word}", f'#!/bin/sh\necho "{word}:$({count})" >>"$HOMELAB_ROOT/order"\n', 0o755)
    text = f"[Unit]\n{about}[Service]\nType=oneshot\nExecStart=/usr/local/bin/{word}\n[Install]\nWantedBy={wanted_by}\n"
    unit(host, f"{word}.service", text)
    host.machine.boot("start")
    host.output(f"systemctl enable {word}.service")


def test_a_container_whose_device_is_missing_does_not_start_with_the_host(host: Host) -> None:
    host.booted()
    assert host.output("pct status 201") == "status: stopped\n"
    log = host.output("cat $HOMELAB_ROOT/var/log/pve/tasks/index")
    assert ":vzstart:201:root@pam:" in log and "Device /dev/nvidia0 does not exist" in log


def test_a_unit_that_nothing_orders_before_the_guests_makes_the_nodes_too_late(host: Host) -> None:
    host.booted()
    unit(host, "nodes.service", NODES.replace("Before=pve-guests.service\n", ""))
    host.output("systemctl enable nodes.service")
    host.reboot()
    assert host.output("systemctl is-active nodes.service") == "active\n"
    assert host.output("ls $HOMELAB_ROOT/dev/nvidia-uvm") and host.output("pct status 201") == "status: stopped\n"


def test_units_run_in_their_order_around_the_guests(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix")
    noting(host, "a-late")
    noting(host, "b-second", "Before=pve-guests.service\nAfter=c-first.service\n")
    noting(host, "c-first", "Before=pve-guests.service\n", "sysinit.target")
    (host.root / "order").unlink(missing_ok=True)
    host.reboot()
    assert order(host) == ["c-first:0", "b-second:0", "a-late:2"]


def test_a_unit_that_the_guests_require_keeps_them_off_when_it_fails(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix", running=True)
    unit(
        host,
        "broken.service",
        "[Unit]\nBefore=pve-guests.service\n[Service]\nType=oneshot\nExecStart=/bin/false\n"
        "[Install]\nRequiredBy=pve-guests.service\n",
    )
    host.output("systemctl enable broken.service")
    host.reboot()
    assert host.run("systemctl is-active broken.service").stdout == "failed\n"
    said = host.output("for file in $HOMELAB_ROOT/etc/pve/lxc/*.conf; do pct status $(basename $file .conf); done")
    assert set(said.splitlines()) == {"status: stopped"}
    assert "Dependency failed for pve-guests.service" in host.output("dmesg")


@pytest.mark.parametrize(
    ("service", "state"),
    [
        ("Type=oneshot\nExecStart=-/bin/false\nExecStart=/bin/true\nRemainAfterExit=yes\n", "active"),
        ("Type=oneshot\nExecStartPre=/bin/false\nExecStart=/bin/true\nRemainAfterExit=yes\n", "failed"),
        ("Type=oneshot\nExecStart=/bin/true\n", "inactive"),
        ("Type=oneshot\nTimeoutStartSec=200ms\nExecStart=/bin/sleep 60\n", "failed"),
        ("ExecStart=/bin/sleep 0.01\n", "active"),
        ("Type=oneshot\n", "failed"),
    ],
)
def test_how_a_service_ends_is_its_state(tmp_path: Path, service: str, state: str) -> None:
    host = Host(tmp_path, "rtx5090", running=True)
    unit(host, "x.service", f"[Service]\n{service}[Install]\nWantedBy=multi-user.target\n")
    host.output("systemctl enable x.service")
    host.reboot()
    assert host.run("systemctl is-active x.service").stdout == f"{state}\n"


@pytest.mark.parametrize(("condition", "runs"), [("/etc/hostname", True), ("!/etc/hostname", False), ("/nope", False)])
def test_a_condition_on_a_path_decides_whether_a_unit_runs(tmp_path: Path, condition: str, runs: bool) -> None:
    host = Host(tmp_path, "rtx5090")
    noting(host, "conditional", f"ConditionPathExists={condition}\n")
    host.reboot()
    assert (host.root / "order").exists() is runs


def test_a_masked_unit_does_not_run(tmp_path: Path) -> None:
    host = Host(tmp_path, "rtx5090")
    noting(host, "masked")
    host.output(
        "rm $HOMELAB_ROOT/etc/systemd/system/masked.service; ln -s /dev/null $HOMELAB_ROOT/etc/systemd/system/masked.service"
    )
    host.reboot()
    assert not (host.root / "order").exists()
