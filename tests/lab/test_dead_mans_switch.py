"""A boot on trial on a lab that runs: its timer, its restarts, and what the program's own SSH side makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.remote import agent, boots, ssh
from lab import Lab
from tests.boot_layers import Asked, archive_with, iommu, reboot, vfio
from tests.lab.stack_kit import host_of
from tests.waiting import wait_until

IOMMU = "amd_iommu=on iommu=pt"
VFIO = "homelab.vfio=0000:01:00.0=10de:2b85"
AFTER = 3
REBOOT = reboot(f"{IOMMU} {VFIO}", rollback_after=AFTER)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab.start("rtx5090", state=tmp_path / "lab") as lab:
        yield lab


def on(lab: Lab, *composed: str | Asked) -> list[Any]:
    """Runs scripts and layers on the host, as `up` does; their answers."""

    session = ssh.Session(host_of(lab))
    session.put_agent("test", 60)
    return [
        session.run("apply", one) if isinstance(one, str) else session.ask("apply", one.layer, one.wanted)
        for one in composed
    ]


def configure(lab: Lab) -> None:
    on(
        lab,
        iommu(IOMMU, rollback_after=AFTER),
        vfio(VFIO, rollback_after=AFTER),
    )


def confirmed(lab: Lab, old_boot_id: str | None = None) -> tuple[HostFacts, list[str]]:
    said: list[str] = []
    host = host_of(lab, {"connect": 5, "reboot": 60})
    return boots.confirm(host, old_boot_id, said.append), said


def test_a_host_restarts_once_it_has_answered_however_long_that_takes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(lab)
    answers = "    if done.status == 0:\n"
    slow = archive_with(
        (
            "layers.reboot",
            answers.replace("    ", " " * 8),
            f"{' ' * 8}__import__('time').sleep(3)\n{' ' * 8}if done.status == 0:\n",
        )
    )
    monkeypatch.setattr(agent, "_archive_text", lambda: slow)
    boots = len(lab.boots())
    (answer,) = on(lab, REBOOT)
    assert answer["reboot"] == "yes" and len(lab.boots()) == boots
    lab.wait_settled(boots=boots + 1)


def test_a_reboot_that_nobody_waits_for_is_judged_by_the_host_and_the_next_up_says_so(lab: Lab) -> None:
    configure(lab)
    lab.reboot()
    wait_until((lab.root / "var/lib/homelab/judged").exists)
    wait_until(lambda: not lab.timers())
    facts, said = confirmed(lab)
    assert not facts.rolled_back
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
    on(lab, REBOOT)
    own = lab.root / "var/lib/homelab"
    # On a machine with much else to do, a look can come when the roll-back is over already: the answer is the same.
    wait_until(lambda: (own / "taken-back").exists() or (own / "rolled-back").exists())
    facts, _ = confirmed(lab, before)
    assert f"boot {lab.boots()[1]['boot_id']} was not confirmed within {AFTER} s" in facts.rolled_back
    assert facts.boot_id == lab.boots()[2]["boot_id"]
    assert VFIO not in facts.cmdline.running


# -- guests without onboot ------------------------------------------------------------------------------------------
def without_onboot(lab: Lab) -> None:
    conf = "arch: amd64\\nhostname: ai-lab\\nmemory: 64\\nostype: unmanaged\\nstartup: order=1\\n"
    lab.run(f"printf '{conf}' >$HOMELAB_ROOT/etc/pve/nodes/pve/lxc/901.conf && pct start 901 && qm set 103 --onboot 0")
    assert lab.run("qm status 103; pct status 901").stdout == "status: running\n" * 2


def power(lab: Lab) -> str:
    return lab.run("qm status 103; pct status 901").stdout.replace("status: ", "").replace("\n", " ")


def starts(lab: Lab) -> list[str]:
    """The tasks that started a guest, with the second of their start."""
    index = lab.run("cat $HOMELAB_ROOT/var/log/pve/tasks/index").stdout
    return [
        f"{kind} {vmid}"
        for line in index.splitlines()
        for kind, vmid in [line.split(":")[5:7]]
        if kind.endswith("start")
    ]


def no_unit_is_left(lab: Lab, names: str) -> bool:
    """None of homelab's files, nor a unit that was taken away while it ran, which makes the host `degraded`."""
    asked = "systemctl is-system-running; systemctl is-active homelab-owed.service homelab-rollback.service"
    states = lab.run(asked, check=False).stdout
    left = list((lab.root / "etc/systemd/system").rglob(names))
    return not left and states == "running\ninactive\ninactive\n"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own wait is cut short."""
    archive = archive_with(
        ("layers.start_guests", "_GRACE_SECONDS = 60.0", "_GRACE_SECONDS = 1.0"),
        ("notes.owed", "Sec=30s", "Sec=1s"),
        ("notes.owed", "Sec=60s", "Sec=1s"),
    )
    monkeypatch.setattr(agent, "_archive_text", lambda: archive)


@pytest.mark.usefixtures("hurried")
def test_who_stays_off_runs_again_by_what_the_message_says(lab: Lab) -> None:
    without_onboot(lab)
    configure(lab)
    lab.run("printf 'lock: snapshot\\n' >>$HOMELAB_ROOT/etc/pve/nodes/pve/qemu-server/103.conf")
    on(lab, reboot(f"{IOMMU} {VFIO}", rollback_after=60))
    lab.wait_settled(boots=2)
    confirmed(lab)
    told = lab.root / "run/homelab/started"
    wait_until(told.exists)
    said = told.read_text()
    assert "VM 103 (Sandbox) was switched off by homelab, and isn't started yet: it is locked, snapshot" in said
    for command in re.findall(r"`(.+?)`", said):
        lab.run(command)
    wait_until(lambda: power(lab) == "running running ")


@pytest.mark.usefixtures("hurried")
def test_what_ran_runs_again_after_a_roll_back_that_nobody_waits_for(lab: Lab) -> None:
    without_onboot(lab)
    stock = lab.snapshot()
    configure(lab)
    on(lab, REBOOT)
    lab.wait_settled(boots=3)
    wait_until((lab.root / "run/homelab/started").exists)
    assert power(lab) == "running running "
    assert starts(lab)[2:] == ["vzstart 901", "qmstart 103"]
    wait_until(lambda: no_unit_is_left(lab, "homelab-owed*"))
    facts, said = confirmed(lab)
    assert facts.rolled_back
    assert said == [
        "the host itself has started what homelab had switched off: container 901 (ai-lab), VM 103 (Sandbox)"
    ]
    assert lab.snapshot() == stock


@pytest.mark.usefixtures("hurried")
def test_what_ran_runs_again_in_a_boot_that_the_host_has_judged_itself(lab: Lab) -> None:
    without_onboot(lab)
    configure(lab)
    on(lab, reboot(f"{IOMMU} {VFIO}", rollback_after=AFTER, awaited=0))
    wait_until((lab.root / "var/lib/homelab/judged").exists)
    wait_until((lab.root / "run/homelab/started").exists)
    assert power(lab) == "running running "
    wait_until(lambda: no_unit_is_left(lab, "homelab-[or]*"))
    _, said = confirmed(lab)
    assert [text for text in said if "judged by this host itself" in text and "has started what homelab" in text]
    assert len(lab.boots()) == 2


def test_a_kernel_without_initramfs_that_is_the_menus_first_is_not_tried(lab: Lab) -> None:
    """Its DKMS has failed, and update-grub lists it all the same. What its owner is told to do is what helps."""
    newest = lab.run("ls -v $HOMELAB_ROOT/boot | sed -n 's/^vmlinuz-//p' | tail -n 1").stdout.strip()
    lab.run(f"rm $HOMELAB_ROOT/boot/initrd.img-{newest}; update-grub")
    with pytest.raises(HomelabError, match=f"initrd line for /boot/vmlinuz-{newest}") as refused:
        on(lab, iommu(IOMMU, rollback_after=AFTER))
    assert not (lab.root / "boot/grub/custom.cfg").exists()
    command = re.search(r"`(update-initramfs .*?)`", refused.value.next)
    assert command
    lab.run(command[1])
    on(lab, iommu(IOMMU, rollback_after=600))
    lab.reboot()
    assert "homelab.trial" in lab.boots()[-1]["cmdline"]
