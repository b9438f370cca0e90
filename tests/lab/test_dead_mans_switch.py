"""The dead man's switch on a lab that runs: its timer, its restarts, and what the program's own SSH side makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.host.facts import HostFacts
from homelab.remote import scripts, ssh
from lab import Lab
from tests.lab.host_kit import settings_of
from tests.waiting import wait_until

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2b85"
AFTER = 3


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        yield lab


def on(lab: Lab, *composed: str) -> list[str]:
    """Runs scripts on the host, as `up` does; their answers."""

    async def main() -> list[str]:
        async with ssh.connect(settings_of(lab)) as session:
            return [await session.run("apply", script) for script in composed]

    return asyncio.run(main())


def configure(lab: Lab) -> None:
    on(
        lab,
        scripts.cmdline("iommu", IOMMU, 0, rollback_after=AFTER),
        scripts.cmdline("vfio", VFIO, 0, rollback_after=AFTER),
    )


def confirmed(lab: Lab, old_boot_id: str | None = None) -> tuple[HostFacts, list[str]]:
    said: list[str] = []
    host = settings_of(lab, connect=5, reboot=60)
    return asyncio.run(ssh.confirm(host, old_boot_id, said.append)), said


def test_a_host_restarts_once_it_has_answered_however_long_that_takes(lab: Lab) -> None:
    configure(lab)
    script = scripts.reboot_host("auto", f"{IOMMU} {VFIO}", [], AFTER)
    slow = script.replace("\nreport() {", "\nreport() {\n  sleep 3", 1)
    assert slow != script
    boots = len(lab.boots())
    (answer,) = on(lab, slow)
    assert scripts.answer(answer)["reboot"] == "yes" and len(lab.boots()) == boots
    lab.wait_settled(boots=boots + 1)


def test_a_reboot_that_nobody_waits_for_is_judged_by_the_host_and_the_next_up_says_so(lab: Lab) -> None:
    configure(lab)
    lab.reboot()
    wait_until((lab.root / "var/lib/homelab/judged").exists)
    wait_until(lambda: not lab.timers())
    facts, said = confirmed(lab)
    assert not facts.rolled_back and not facts.judged
    assert VFIO in facts.cmdline.running
    assert [text for text in said if "was waited for by no `up`" in text and "sshd listens on port 22" in text]
    assert len(lab.boots()) == 2
    assert not list((lab.root / "etc/systemd/system").rglob("homelab-rollback*"))


def test_a_reboot_that_nobody_waits_for_is_undone_where_the_host_is_out_of_reach(lab: Lab) -> None:
    stock = lab.snapshot()
    configure(lab)
    lab.fault("no-network-when", VFIO)
    lab.reboot()
    lab.wait_settled(boots=3)
    facts, _ = confirmed(lab)
    assert "no interface that is up has 192.168.0.202" in facts.rolled_back and not facts.rolling_back
    assert VFIO not in facts.cmdline.running
    assert lab.snapshot() == stock


def test_a_confirmation_that_comes_during_the_roll_back_gets_its_message_after_the_restart(lab: Lab) -> None:
    configure(lab)
    before = lab.boots()[-1]["boot_id"]
    on(lab, scripts.reboot_host("auto", f"{IOMMU} {VFIO}", [], AFTER))
    lab.wait_settled(boots=2)
    wait_until((lab.root / "var/lib/homelab/rolling-back").exists)
    facts, _ = confirmed(lab, before)
    assert f"boot {lab.boots()[1]['boot_id']} was not confirmed within {AFTER} s" in facts.rolled_back
    assert facts.boot_id == lab.boots()[2]["boot_id"]
    assert VFIO not in facts.cmdline.running
