"""The second entries of systemd-boot, when a kernel has come or gone: the hook in a real shell, and the layer that it asks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from homelab.remote import agent, scripts
from tests.agent import boot_kit
from tests.agent.boot_kit import ESPS, KERNELS, SYSTEMD_BOOT
from tests.agent.kit import Host, Refused, bash

HOOK = "/etc/kernel/postinst.d/zzz-homelab"


def second_entries(host: Host, uuid: str) -> dict[str, str]:
    entries = (host.root / f"esp/{uuid}/loader/entries").glob("homelab-without-gpu-*")
    return {path.name: path.read_text() for path in entries}


def follow(host: Host) -> None:
    host.ask("apply", "boot_entries", {})


@pytest.fixture
def hooked(host: Host, stocked_boot: None) -> Host:
    """A host with systemd-boot, and with what makes second entries."""
    host.write("/var/lib/homelab/cmdline/vfio", " quiet\n")
    host.write(HOOK, "", 0o755)
    return host


@SYSTEMD_BOOT
def test_a_full_esp_gets_no_truncated_entry_and_its_error_is_reported(hooked: Host, tmp_path: Path) -> None:
    theirs, failed = hooked.tree("esp"), 0
    found = boot_kit.on_a_full_disk(hooked, follow, tmp_path / "full", f"/run/homelab/esp-{ESPS[0]}/", step=1)
    for _, said, left in found:
        if said:
            failed += 1
            assert "No space left on device" in said and f"/run/homelab/esp-{ESPS[0]}" in said
            assert left.tree("esp") == theirs, "nothing half-written is left"
        else:
            for text in (*second_entries(left, ESPS[0]).values(), *second_entries(left, ESPS[1]).values()):
                assert "options  root=ZFS=rpool/ROOT/pve-1 boot=zfs\n" in text and "linux    /vmlinuz" in text
    assert len(second_entries(left, ESPS[0])) == len(second_entries(left, ESPS[1])) == len(KERNELS)
    assert failed


@SYSTEMD_BOOT
def test_an_entry_of_proxmox_that_is_cut_short_gets_no_second_one(hooked: Host) -> None:
    hooked.write(f"/esp/{ESPS[0]}/loader/entries/proxmox-{KERNELS[0]}.conf", "title    Proxmox\n")
    with pytest.raises(Refused, match=f"proxmox-{KERNELS[0]}.conf has no options: it isn't whole"):
        follow(hooked)


@SYSTEMD_BOOT
def test_a_second_entry_goes_with_its_kernel(hooked: Host) -> None:
    follow(hooked)
    (hooked.root / f"esp/{ESPS[0]}/loader/entries/proxmox-{KERNELS[0]}.conf").unlink()
    assert {*second_entries(hooked, ESPS[0])} == {f"homelab-without-gpu-{kernel}.conf" for kernel in KERNELS}
    follow(hooked)
    assert {*second_entries(hooked, ESPS[0])} == {f"homelab-without-gpu-{KERNELS[1]}.conf"}


@SYSTEMD_BOOT
def test_an_empty_line_among_the_esps_is_passed_over(hooked: Host) -> None:
    """Someone has taken an ESP out of the list by hand, as messages say it."""
    hooked.write("/etc/kernel/proxmox-boot-uuids", f"\n{ESPS[0]}\n\n")
    follow(hooked)
    assert len(second_entries(hooked, ESPS[0])) == len(KERNELS) and not second_entries(hooked, ESPS[1])


# The hook.


def called(host: Host) -> subprocess.CompletedProcess[str]:
    host.write(HOOK, f"{scripts.file('systemd_boot_entry.sh')}\n", 0o755)
    return bash(host, f'"$HOMELAB_ROOT{HOOK}"')


def test_without_an_agent_the_hook_keeps_no_kernel_from_being_installed(host: Host) -> None:
    done = called(host)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_agent_that_cannot_run_keeps_no_kernel_from_being_installed_and_the_command_for_later_is_said(
    host: Host,
) -> None:
    """Such as while apt replaces Python, too, or where an ESP is full. Another stack's agent is asked then."""
    for place in (agent.place("a"), agent.place("b")):
        host.write(place, "half of it")
    done = called(host)
    assert done.returncode == 0 and "don't follow this kernel yet: mend what is said above" in done.stderr
    host.write(agent.place("b"), f"open({str(host.root)!r} + '/asked', 'w').write(input())\n")
    later = bash(host, done.stderr.rpartition("then run ")[2].strip())
    assert later.returncode == 0 and "don't follow" not in later.stderr
    assert host.read("/asked") == '{"layer":"boot_entries","input":{}}'
