"""The program's own SSH side on a lab: a host that reboots is waited for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from homelab.remote import boots, ssh
from lab import Lab
from tests.lab.stack_kit import host_of


def test_a_reading_that_hangs_after_the_reboot_leaves_time_to_confirm_the_boot(tmp_path: Path) -> None:
    late: list[str] = []

    with Lab.start("rtx5090", state=tmp_path / "lab") as lab, ThreadPoolExecutor(1) as threads:
        host = host_of(lab, {"reboot": 30, "rollback": 30})
        before = ssh.read(host).boot_id
        lab.reboot()
        lab.fault("script-hangs", '"guests": false')
        waiting = threads.submit(boots.wait_for_boot, host, before, late.append)
        lab.wait_command('"guests": false')
        lab.fault("script-hangs", None)
        assert lab.boots()[-1]["boot_id"] == waiting.result().boot_id
        lab.wait_idle()
        readings = [
            entry.get("client") for entry in lab.commands() if "sys.stdin.buffer.readline()" in entry["command"]
        ]
        assert readings[-3:] == ["lost", None, None], "the reading, again, and the confirmation"
    # It wasn't waited for until the dead man's switch would have given the host back.
    assert not [line for line in late if "it gives back" in line]
