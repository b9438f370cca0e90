"""The layer initramfs: the script that binds cards, in every kernel's initramfs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import agent, scripts
from remote_scripts import installed
from remote_scripts.tools.done import Done
from tests.agent import boot_kit, disk_kit
from tests.agent.boot_kit import EACH_LOADER, INIT_TOP, KERNELS, lasting
from tests.agent.cluster_kit import note_ran
from tests.agent.kit import Host, Refused

HOOK, MODULES = "/etc/initramfs-tools/hooks/homelab-vfio", "/etc/modules-load.d/homelab-vfio.conf"
HOME = "/var/lib/homelab"
#: What a run may leave that found the disk full.
LEFT = ("boot/initrd.img-", "var/lib/homelab")
NOTES = {HOME[1:], *(f"{HOME[1:]}/{one}" for one in ("pending", "pending/boot", "pending/initramfs"))}

pytestmark = pytest.mark.usefixtures("stocked_boot")


def ask(host: Host, verb: str, *, needed: bool = True) -> Any:
    return host.ask(verb, "initramfs", {"needed": needed})


def images(host: Host) -> list[str]:
    return [host.read(f"/boot/initrd.img-{kernel}") for kernel in KERNELS]


@EACH_LOADER
def test_it_is_in_every_initramfs_and_given_back(host: Host) -> None:
    before = lasting(host)
    assert ask(host, "apply") == {"changed": True}
    assert all("homelab.vfio=*" in image for image in images(host))
    assert host.read(INIT_TOP) == scripts.file("init_top.sh") + "\n"
    assert host.read(HOOK) == scripts.file("initramfs_hook.sh") + "\n"
    modes = {path: (host.root / path[1:]).stat().st_mode & 0o777 for path in (INIT_TOP, HOOK, MODULES)}
    assert modes == {INIT_TOP: 0o755, HOOK: 0o755, MODULES: 0o644}
    assert host.read(MODULES).splitlines()[1:] == ["vfio", "vfio_iommu_type1", "vfio_pci"]
    configured = lasting(host)
    assert ask(host, "apply") == {"changed": False} and lasting(host) == configured
    assert ask(host, "revert") == {"changed": True} and lasting(host) == before
    assert ask(host, "revert") == {"changed": False} and lasting(host) == before


@pytest.mark.parametrize(("says", "gone"), [("status: running", True), ("status: stopped", False), ("", False)])
def test_guests_that_ran_are_forgotten_only_when_each_is_known_to_run(host: Host, says: str, gone: bool) -> None:
    host.write("/etc/pve/qemu-server/103.conf", "")
    note_ran(host, ("qm", 103, "earlier"))
    host.write(f"{HOME}/owed-program", "", 0o700)
    host.programs["qm"] = lambda _arguments, _stdin: Done(0 if says else 124, says.encode())
    ask(host, "revert")
    assert host.exists(f"{HOME}/owed") is not gone and host.exists(f"{HOME}/owed-program") is not gone


def test_a_guest_that_is_gone_is_owed_nothing(host: Host) -> None:
    (host.root / "etc/pve/lxc").mkdir(parents=True)
    note_ran(host, ("pct", 901, "earlier"))
    host.programs["pct"] = lambda _arguments, _stdin: Done(2, b"no such container")
    ask(host, "revert")
    assert not host.exists(HOME)


@pytest.mark.parametrize("lacks", ["update-initramfs", "hook-functions"])
def test_without_initramfs_tools_nothing_begins(host: Host, lacks: str) -> None:
    if lacks == "hook-functions":
        (host.root / "usr/share/initramfs-tools/hook-functions").unlink()
    else:
        del host.programs[lacks]
    before = lasting(host)
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match="initramfs-tools, which makes Proxmox VE's initramfs"):
            ask(host, verb)
    assert lasting(host) == before


def test_a_plan_names_what_is_written_and_made_and_changes_nothing(host: Host) -> None:
    before = host.tree()
    found = {one["what"]: (one["how"], one["diff"]) for one in ask(host, "plan")["files"]}
    assert {what: how for what, (how, _) in found.items()} == {
        HOOK: "changed", INIT_TOP: "new", MODULES: "changed", "the initramfs of 2 kernel(s)": "made",
    }  # fmt: skip
    assert "+vfio_pci" in found[MODULES][1] and "-theirs, no newline" in found[MODULES][1]
    assert host.tree() == before
    ask(host, "apply")
    assert ask(host, "plan") == {"files": []}
    assert {one["what"]: one["how"] for one in ask(host, "plan", needed=False)["files"]} == {
        HOOK: "given back", INIT_TOP: "removed", MODULES: "given back", "the initramfs of 2 kernel(s)": "made",
    }  # fmt: skip


@pytest.mark.parametrize("what", ["empty", "older", "pending"])
def test_an_initramfs_that_lacks_the_script_is_made_anew(host: Host, what: str) -> None:
    ask(host, "apply")
    configured = lasting(host)
    image = host.root / f"boot/initrd.img-{KERNELS[0]}"
    if what == "empty":
        image.write_bytes(b"")
    elif what == "older":
        image.write_text("old")
        os.utime(image, (1, 1))
    else:
        image.write_text("old")
        host.write(f"{HOME}/pending/initramfs", "")
    assert ask(host, "plan")["files"][-1]["how"] == "made"
    ask(host, "apply")
    assert lasting(host) == configured


@EACH_LOADER
@pytest.mark.parametrize("fails", ["", KERNELS[-1]], ids=["for all kernels", "for one"])
def test_one_that_cant_be_made_leaves_the_files_as_they_were_and_is_still_to_be_made(host: Host, fails: str) -> None:
    before = lasting(host)
    host.write("/fail", fails)
    with pytest.raises(Refused, match=r"(?s)every installed kernel rebuilt\nfound: +no room"):
        ask(host, "apply")
    added = {HOME[1:], *(f"{HOME[1:]}/{one}" for one in ("pending", "pending/initramfs"))}
    assert set(lasting(host)) - set(before) == added
    (host.root / "fail").unlink()
    ask(host, "revert")
    assert lasting(host) == before


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_success_by_which_no_initramfs_was_made_is_none(host: Host, verb: str) -> None:
    """As where /boot is mounted read-only."""
    if verb == "revert":
        ask(host, "apply")
    host.programs["update-initramfs"] = lambda _arguments, _stdin: Done(0, b"W: /boot is ro mounted.\n")
    with pytest.raises(Refused, match=f"made no new /boot/initrd.img-{KERNELS[0]} .*a success\nW: /boot is ro mounted"):
        ask(host, verb)
    assert host.exists(f"{HOME}/pending/initramfs")
    boot_kit.run(host)
    ask(host, verb)
    assert all(("homelab.vfio=*" in image) == (verb == "apply") for image in images(host))


def test_one_that_can_be_made_of_the_old_files_leaves_nothing_to_do(host: Host) -> None:
    before = lasting(host)
    real, runs = host.programs["update-initramfs"], []

    def fails_once(arguments: Sequence[str], stdin: bytes) -> Any:
        runs.append(arguments)
        return Done(1, b"no room") if len(runs) == 1 else real(arguments, stdin)

    host.programs["update-initramfs"] = fails_once
    with pytest.raises(Refused, match="every installed kernel rebuilt"):
        ask(host, "apply")
    assert runs == [("-u", "-k", "all")] * 2 and lasting(host) == before


def test_what_it_installs_is_in_the_agent_and_counts_in_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(agent._source("remote_scripts.installed"), names)
    assert names["TEXTS"] == dict(installed.TEXTS) and "end_trial" in names["TEXTS"]["rollback"]
    before = agent.code_of("initramfs"), agent.code_of("card_values")
    source = agent._source
    caches = (agent.code_of, agent._digest)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(agent, "_source", lambda name: source(name) + "#" * (name == "remote_scripts.installed"))
    try:
        now = agent.code_of("initramfs"), agent.code_of("card_values")
    finally:
        for cache in caches:
            cache.cache_clear()
    assert now[0] != before[0] and now[1] == before[1]


@pytest.mark.parametrize(("free", "found"), [("1", "0 MiB free"), ("", "df doesn't say how much is free")])
def test_a_boot_that_is_too_full_is_refused_by_the_plan_and_only_where_an_initramfs_is_made(
    host: Host, free: str, found: str
) -> None:
    room = host.programs["df"]
    host.programs["df"] = lambda _arguments, _stdin: f"\nx 1 1 {free} 1% /" if free else 1
    for verb in ("plan", "apply"):
        with pytest.raises(Refused, match=f"room on /boot for a new initramfs[^\n]*\nfound: *{found}"):
            ask(host, verb)
    before, full, host.programs["df"] = lasting(host), host.programs["df"], room
    ask(host, "apply")
    host.programs["df"] = full
    assert ask(host, "plan") == {"files": []} and ask(host, "apply") == {"changed": False}
    assert ask(host, "plan", needed=False)["files"], "to give back no room is asked for"
    assert ask(host, "apply", needed=False) == {"changed": True} and lasting(host) == before


def test_on_a_full_disk_the_message_comes_first_and_nothing_of_ours_is_left(host: Host, tmp_path: Path) -> None:
    """What could not be made of the old files either is still to be done; what is made is the next run's to mend."""
    before, failed = lasting(host), 0
    configured: disk_kit.Tree = {}
    found = [*boot_kit.on_a_full_disk(host, lambda one: ask(one, "apply"), tmp_path / "full")]
    for number, said, left in found:
        ours = {key for key in {*lasting(left), *before} if lasting(left).get(key) != before.get(key)}
        if said:
            failed += 1
            assert said.startswith("wanted: ") and not [key for key in ours if not key.startswith(LEFT)], number
            assert {key for key in ours if key.startswith("var/")} <= NOTES, number
            assert not ours or f"{HOME[1:]}/pending/initramfs" in ours, number
        ask(left, "apply")
        configured = configured or lasting(found[-1][2])
        assert lasting(left) == configured, number
    assert failed
