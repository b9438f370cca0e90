"""Rules that stand in two languages, since both must know them at once: held to each other on the same tables."""

from __future__ import annotations

import pytest

from homelab.host import gates
from homelab.nvidia import versions
from tests.boot_layers import initramfs, iommu
from tests.scripts.conftest import Folder, quoted
from tests.unit.hosts import desktop, settings


# -- is it the wanted driver? The scripts decide on the system, the plan of what is offered, the verification of what is in use -----
@pytest.mark.parametrize(
    ("version", "wanted", "fitting"),
    [
        ("580.105.08", "580.105.08", True), ("580.105.08", "580", True), ("580.105.08", "580.95.05", False), ("580.105.08", "58", False),
        ("580.105.08", "5801", False), ("5801.1", "580", False), ("570.195.03", "580", False), ("580.95.05", "580.95", False), ("", "580", False),
    ],
)  # fmt: skip
def test_scripts_and_plan_agree_on_whether_a_driver_is_the_wanted_one(
    folder: Folder, version: str, wanted: str, fitting: bool
) -> None:
    done = folder.bash(f"DRIVER={wanted}\nfits {quoted(version)} && echo yes || echo no\n", parts=["driver"])
    assert done.stdout == ("yes\n" if fitting else "no\n"), done.stderr
    assert versions.fits(versions.of_package(version), versions.parse(wanted)) is fitting


# -- what a gate refuses from a reading, before the script would: with the same words ---------------------------------
def message(text: str) -> tuple[str, ...]:
    """The four parts of a message, whoever says it."""
    return tuple(line.partition(":")[2].strip() for line in text.strip().splitlines())


@pytest.mark.parametrize(("free", "fits"), [(0, False), (109, False), (110, True), (1000, True)])
def test_gate_and_script_agree_on_whether_boot_has_room_and_in_their_words(
    folder: Folder, free: int, fits: bool
) -> None:
    mebi = 2**20
    folder.write("usr/share/initramfs-tools/hook-functions", "")
    folder.write("boot/vmlinuz-6.17.2-1-pve", "")
    with folder.write("boot/initrd.img-6.17.2-1-pve", "").open("r+b") as image:
        image.truncate(100 * mebi)
    folder.command("update-initramfs", "exit 0")
    folder.command("df", f"printf 'Filesystem 1-blocks Used Available\\n/dev/x 1 1 {free * mebi} 1%% /boot\\n'")
    done = folder.run("plan", initramfs())
    refused = gates.room(desktop(boot_free=free * mebi, largest_initramfs=100 * mebi), settings())
    assert (done.returncode == 0, refused == []) == (fits, fits), done.stdout
    assert fits or message(str(refused[0])) == message(done.stdout)


def test_gate_and_script_say_the_same_of_a_boot_loader_that_is_not_known(folder: Folder) -> None:
    (folder.root / "sys/firmware/efi").mkdir(parents=True)
    done = folder.run("plan", iommu("iommu=pt"))
    clues = message(done.stdout)[1]
    (refused,) = gates.tools(desktop(loader="", loader_clues=clues), settings())
    wanted, found, why, following = message(done.stdout)
    assert (found, why, following) == message(str(refused))[1:] and wanted.startswith(refused.wanted)
