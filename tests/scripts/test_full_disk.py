"""Disks that are full: a script says so first, leaves nothing of its own, and the next run, with room, does its work.

The disks are small tmpfs in a mount namespace of the test's own. By default a sample of how full they are is tried, the same in each run;
HOMELAB_EVERY_CUT=1 tries every one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.remote import agent, scripts
from tests import sampling, sent_along
from tests.boot_layers import Asked, initramfs, iommu, vfio
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder

CHAIN = {
    "iommu": iommu("amd_iommu=on iommu=pt"),
    "initramfs": initramfs(),
    "vfio": vfio("homelab.vfio=0000:01:00.0=10de:2882 modprobe.blacklist=nouveau"),
}
#: Pages of 4 KiB that are free: from none to more than a script takes.
PAGES = range(12)
HOOK = "/etc/kernel/postinst.d/zzz-homelab"
_NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]

#: This machine's own, not the stand-in.
_MOUNT = shutil.which("mount") or "mount"

_ON_A_FULL_DISK = """\
set -eu
"$MOUNT" -t tmpfs -o size=4m none "$DISK"
cp -a "$STOCK/." "$DISK"
cat /dev/zero >"$DISK/ballast" 2>/dev/null || :
truncate -s "-$((PAGES * 4096))" "$DISK/ballast"
bash -c "$COMMAND" <"$SCRIPT" >"$OUT/stdout" 2>"$OUT/stderr" && echo 0 >"$OUT/status" || echo "$?" >"$OUT/status"
rm "$DISK/ballast"
cp -a "$ROOT" "$OUT/left"
bash -c "$COMMAND" <"$SCRIPT" >/dev/null 2>"$OUT/stderr-again"
cp -a "$ROOT" "$OUT/again"
"""


@pytest.fixture(autouse=True)
def needs_mounts() -> None:
    if subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs in a namespace of their own")


def on_a_full_disk(host: Folder, disk: str, script: Asked, pages: int, out: Path) -> None:
    """Run ``script`` on a copy of ``host`` with that many ``pages`` free on ``disk``; then once more with room."""
    root = out / "root"
    shutil.copytree(host.root, root, symlinks=True)
    shutil.copytree(root / disk, out / "stock", symlinks=True)
    (out / "script").write_text(script.sent("apply"))
    places = {"ROOT": root, "DISK": root / disk, "STOCK": out / "stock", "SCRIPT": out / "script", "OUT": out}
    environment = {
        **host.environment,
        **{key: str(path) for key, path in places.items()},
        "PAGES": str(pages),
        "MOUNT": _MOUNT,
        "COMMAND": agent.command_in_memory("root"),
    }
    done = subprocess.run(
        [*_NAMESPACE, "bash", "-c", _ON_A_FULL_DISK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def run(folder: Folder, layer: str) -> None:
    done = folder.run("apply", CHAIN[layer])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("layer", "disk"), sampling.paired(list(CHAIN), ["", "etc", "var", "boot", "run"], "full"))
def test_on_a_full_disk_the_message_comes_first_and_nothing_of_ours_is_left(
    folder: Folder, layer: str, disk: str, tmp_path: Path
) -> None:
    cut_kit.stock(folder, "grub")
    for earlier in list(CHAIN)[: list(CHAIN).index(layer)]:
        run(folder, earlier)
    before = cut_kit.tree(folder.root)
    failed = 0
    levels = PAGES[::3] if not (disk or sampling.EVERY) else sampling.sample(PAGES, 2, f"{layer}{disk}")
    for pages in levels:
        out = tmp_path / f"pages-{pages}"
        out.mkdir()
        on_a_full_disk(folder, disk, CHAIN[layer], pages, out)
        left = cut_kit.tree(out / "left")
        if (out / "status").read_text() != "0\n":
            failed += 1
            assert sent_along.answer((out / "stdout").read_text()).startswith("wanted: "), (
                pages,
                (out / "stderr").read_text(),
            )
            ours = {key for key in {*left, *before} if left.get(key) != before.get(key)}
            # What could not be made of the old files either is still to be done; what is made is the next run's to mend.
            pending = {key for key in ours if key.startswith("var/lib/homelab")}
            assert pending <= {
                "var/lib/homelab",
                "var/lib/homelab/pending",
                *(f"var/lib/homelab/pending/{each}" for each in ("boot", "initramfs")),
            }, pages
            assert not {key for key in ours if not key.startswith(("boot/", "var/"))}, pages
            assert pending or not ours, pages
    run(folder, layer)
    configured = cut_kit.tree(folder.root)
    for pages in levels:
        assert cut_kit.tree(tmp_path / f"pages-{pages}" / "again") == configured
    assert failed > 0 or disk


_ON_A_FULL_ESP = """\
set -eu
esp=$ROOT/esp/AAAA-0001
cp -a "$esp" "$OUT/esp"
"$MOUNT" -t tmpfs -o size=256k none "$esp"
cp -a "$OUT/esp/." "$esp"
cat /dev/zero >"$esp/ballast" 2>/dev/null || :
truncate -s "-$((PAGES * 4096))" "$esp/ballast"
sh "$SCRIPT" >"$OUT/stdout" 2>&1 && echo 0 >"$OUT/status" || echo "$?" >"$OUT/status"
rm "$esp/ballast"
cp -a "$esp" "$OUT/left"
"""


@pytest.fixture
def hooked(folder: Folder) -> Folder:
    """A host with systemd-boot, with the hook for its second entries, which asks an agent."""
    cut_kit.stock(folder, "systemd-boot")
    command = agent.command_to_put("root")
    subprocess.run(["bash", "-c", command], input=agent.put("test"), env=folder.environment, text=True, check=True)
    folder.write("/var/lib/homelab/cmdline/vfio", " quiet\n")
    folder.write(HOOK, f"{scripts.file('systemd_boot_entry.sh')}\n", 0o755)
    return folder


def second_entries(esp: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (esp / "loader/entries").glob("homelab-without-gpu-*")}


@pytest.mark.parametrize("pages", range(4))
def test_a_full_esp_gets_no_truncated_entry_and_its_error_is_reported(
    hooked: Folder, pages: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    places = {"SCRIPT": str(hooked.root / HOOK[1:]), "OUT": str(out)}
    environment = {**hooked.environment, **places, "PAGES": str(pages), "MOUNT": _MOUNT}
    done = subprocess.run(
        [*_NAMESPACE, "bash", "-c", _ON_A_FULL_ESP], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, ours = (out / "stdout").read_text(), second_entries(out / "left")
    assert len(ours) == (2 if pages > 1 else 0) == len(second_entries(hooked.root / "esp/AAAA-0002"))
    for text in ours.values():
        assert "linux    /vmlinuz\n" in text and "options  root=ZFS=rpool/ROOT/pve-1 boot=zfs\n" in text
    assert (out / "status").read_text() == "0\n", "the kernel's package would be left half-configured"
    for text in ("No space left on device", "/run/homelab/esp-AAAA-0001", "don't follow this kernel yet"):
        assert (text in said) == (pages < 2)
    assert {path.name for path in (out / "left/loader/entries").iterdir()} - {*ours} == {
        path.name for path in (out / "esp/loader/entries").iterdir()
    }, "nothing half-written is left"
    assert not list((hooked.root / "run/homelab").glob("esp*"))


def test_an_entry_of_proxmox_that_is_cut_short_gets_no_second_one(hooked: Folder) -> None:
    entry = hooked.root / "esp/AAAA-0001/loader/entries/proxmox-6.8.12-1-pve.conf"
    entry.write_text("title    Proxmox\n")
    done = hooked.bash(f'"$ROOT{HOOK}"')
    assert "esp-AAAA-0001/loader/entries/proxmox-6.8.12-1-pve.conf has no options: it isn't whole" in done.stderr
    assert "don't follow this kernel yet" in done.stderr


def test_a_second_entry_goes_with_its_kernel(hooked: Folder) -> None:
    assert hooked.bash(f'"$ROOT{HOOK}"').returncode == 0
    esp = hooked.root / "esp/AAAA-0001"
    (esp / "loader/entries/proxmox-6.8.12-1-pve.conf").unlink()
    assert "homelab-without-gpu-6.8.12-1-pve.conf" in second_entries(esp)
    assert hooked.bash(f'"$ROOT{HOOK}"').returncode == 0
    assert len(second_entries(esp)) == 1 and "homelab-without-gpu-6.8.12-1-pve.conf" not in second_entries(esp)


def test_an_empty_line_among_the_esps_is_passed_over(hooked: Folder) -> None:
    """Someone has taken an ESP out of the list by hand, as messages say it."""
    hooked.write("/etc/kernel/proxmox-boot-uuids", "\nAAAA-0001\n\n")
    done = hooked.bash(f'"$ROOT{HOOK}"')
    assert (done.returncode, len(second_entries(hooked.root / "esp/AAAA-0001"))) == (0, 2), done.stderr


def test_without_an_agent_the_hook_keeps_no_kernel_from_being_installed(hooked: Folder) -> None:
    shutil.rmtree(hooked.root / "var/lib/homelab/agents")
    done = hooked.bash(f'"$ROOT{HOOK}"')
    assert (done.returncode, done.stderr) == (0, "")


def test_an_agent_that_cannot_run_keeps_no_kernel_from_being_installed_and_the_command_for_later_is_said(
    hooked: Folder,
) -> None:
    """Such as while apt replaces Python, too."""
    place = hooked.root / agent.place("test")[1:]
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    done = hooked.bash(f'"$ROOT{HOOK}"')
    assert done.returncode == 0 and second_entries(hooked.root / "esp/AAAA-0001") == {}
    command = done.stderr.rpartition("then run ")[2].strip()
    place.write_bytes(whole)
    assert hooked.bash(command).returncode == 0
    assert len(second_entries(hooked.root / "esp/AAAA-0001")) == 2
