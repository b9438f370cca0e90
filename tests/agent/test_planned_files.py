"""What the layers of a boot say that they would change is what they change, from one state to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from remote_scripts.both.cmdline import Wanted as Cmdline
from tests.agent.boot_kit import INIT_TOP, MENU, lasting
from tests.agent.kit import Host

IOMMU = "amd_iommu=on iommu=pt"
VFIO, ANOTHER = "homelab.vfio=0000:01:00.0=10de:2882", "homelab.vfio=0000:41:00.0=10de:2684"
STOCK, CONFIGURED = ("", ""), (IOMMU, VFIO)
MADE = {MENU, "the boot entries on 2 ESP(s)", "the initramfs of 2 kernel(s)"}
SOMEBODYS = "/etc/modules-load.d/homelab-vfio.conf"

pytestmark = pytest.mark.usefixtures("stocked_boot")

#: The boot loader, what is configured, what somebody does to it (a file: what it has then; None: it goes), and what is wanted then.
STEPS: dict[str, tuple[str, tuple[str, str], dict[str, str | None], tuple[str, str]]] = {
    "a stock host": ("grub", STOCK, {}, CONFIGURED),
    "a host that is as wanted": ("grub", CONFIGURED, {}, CONFIGURED),
    "passthrough mode off": ("grub", CONFIGURED, {}, ("amd_iommu=on", VFIO)),
    "another card": ("grub", CONFIGURED, {}, (IOMMU, ANOTHER)),
    "no card any more": ("grub", CONFIGURED, {}, (IOMMU, "")),
    "nothing any more": ("grub", CONFIGURED, {}, STOCK),
    "a file changed by hand": ("grub", CONFIGURED, {INIT_TOP: "edited\n"}, CONFIGURED),
    "a file gone": ("grub", CONFIGURED, {INIT_TOP: None}, CONFIGURED),
    "a stock host with systemd-boot": ("systemd-boot", STOCK, {}, CONFIGURED),
    "systemd-boot, as wanted": ("systemd-boot", CONFIGURED, {}, CONFIGURED),
    "systemd-boot, another card": ("systemd-boot", CONFIGURED, {}, (IOMMU, ANOTHER)),
    "systemd-boot, no card any more": ("systemd-boot", CONFIGURED, {}, (IOMMU, "")),
}  # fmt: skip


def ask(host: Host, verb: str, words: tuple[str, str]) -> Iterator[Any]:
    """What each layer answers, in a boot that has just these words: so they aren't tried first."""
    if verb == "apply":
        host.write("/proc/cmdline", f"quiet {' '.join(words)}\n")
    yield host.ask(verb, "cmdline", Cmdline(name="iommu", words=words[0], rollback_after=20))
    yield host.ask(verb, "initramfs", {"needed": bool(words[1])})
    yield host.ask(verb, "cmdline", Cmdline(name="vfio", words=words[1], rollback_after=20))


def planned(host: Host, words: tuple[str, str], key: str = "how") -> dict[str, str]:
    """What -> how it changes, or the diff."""
    return {file["what"]: file[key] for answer in ask(host, "plan", words) for file in answer["files"]}


def etc(host: Host) -> dict[str, object]:
    return {f"/{path}": content for path, (_, content) in host.tree("etc").items() if content is not None}


@pytest.mark.parametrize(("loader", "there", "by_hand", "wanted"), STEPS.values(), ids=STEPS)
def test_a_plan_names_each_file_that_apply_changes_and_changes_none(
    host: Host, there: tuple[str, str], by_hand: dict[str, str | None], wanted: tuple[str, str]
) -> None:
    assert there == STOCK or [*ask(host, "apply", there)]
    for path, text in by_hand.items():
        host.write(path, text) if text is not None else (host.root / path[1:]).unlink()
    everything, before = lasting(host), etc(host)
    said = planned(host, wanted)
    assert lasting(host) == everything
    assert [*ask(host, "apply", wanted)]
    after = etc(host)
    changed = {path: "changed" for path in before.keys() & after.keys() if before[path] != after[path]}
    changed |= dict.fromkeys(after.keys() - before.keys(), "new")
    changed |= dict.fromkeys(before.keys() - after.keys(), "removed")
    back = {path: "given back" for path in changed if said.get(path) == "given back"}
    assert {what: how for what, how in said.items() if how != "made"} == changed | back
    assert all(after[path] in (b"theirs, no newline", b"# theirs\n") for path in back)
    made = {what for what, how in said.items() if how == "made"}
    assert (lasting(host) == everything) is (not made) and made <= MADE
    assert planned(host, wanted) == {}  # nothing is left to do


def test_a_diff_shows_what_is_lost_of_a_file_that_this_program_has_not_written(host: Host) -> None:
    shown = {path for path, diff in planned(host, CONFIGURED, key="diff").items() if diff}
    assert shown == {SOMEBODYS, "/etc/initramfs-tools/hooks/homelab-vfio"}
    assert [*ask(host, "apply", CONFIGURED)]
    host.write(INIT_TOP, host.read(INIT_TOP) + "edited\n", 0o755)
    found = planned(host, (IOMMU, ANOTHER), key="diff")
    assert {path for path, diff in found.items() if diff} == {INIT_TOP} and found[INIT_TOP].endswith("\n-edited")
    assert "/etc/default/grub.d/zz-homelab-vfio.cfg" in found
