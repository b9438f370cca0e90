"""card_rom.sh: a card's option ROM read, kept as a file for QEMU, and taken away."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from homelab.remote import scripts
from tests.scripts.conftest import Folder
from tests.unit.test_rom import BOTH

CARD, IDS = "0000:01:00.0", "10de:2b85"
SYS = f"sys/bus/pci/devices/{CARD}"
KEPT = "usr/share/kvm/homelab-card.rom"


@pytest.fixture
def host(folder: Folder) -> Folder:
    """A card whose ROM can be read while it is awake and its attribute is 1, as the kernel's."""
    for name, text in {"vendor": "0x10de", "device": "0x2b85", "power/control": "auto", "rom": "0"}.items():
        folder.write(f"{SYS}/{name}", text)
    (folder.commands / "rom.bin").write_bytes(BOTH)
    folder.command(
        "head",
        f"""case "$*" in
  */rom) [[ $(<"$ROOT/{SYS}/rom") == 1 && $(<"$ROOT/{SYS}/power/control") == on ]] || exit 1; exec cat "{folder.commands}/rom.bin" ;;
esac
exec /usr/bin/head "$@\"""",
    )
    folder.write("usr/share/kvm/vgabios.bin", "x")
    return folder


def done(host: Folder, verb: str, **about: Any) -> Any:
    ran = host.run(verb, scripts.card_rom("homelab-card.rom", **about))
    return json.loads(ran.stdout) if ran.returncode == 0 else ran.stdout


def read(host: Folder, **about: Any) -> Any:
    return done(host, "read_rom", address=CARD, ids=IDS, **about)


def test_the_card_is_woken_read_and_left_as_it_was(host: Folder) -> None:
    before = host.tree()
    assert base64.b64decode(read(host)["rom"]) == BOTH
    after = {path: what for path, what in host.tree().items() if path in before}
    assert after == before


def test_one_that_is_kept_awake_stays_awake(host: Folder) -> None:
    host.write(f"{SYS}/power/control", "on")
    assert base64.b64decode(read(host)["rom"]) == BOTH
    assert host.read(f"{SYS}/power/control") == "on"


def test_where_the_card_may_not_be_touched_the_firmwares_table_alone_is_read(host: Folder) -> None:
    (host.root / "sys/firmware/acpi/tables").mkdir(parents=True)
    (host.root / "sys/firmware/acpi/tables/VFCT").write_bytes(b"VFCT\x00\xff")
    found = read(host, at_rest=False)
    assert found["rom"] == "" and base64.b64decode(found["vfct"]) == b"VFCT\x00\xff"


def test_a_card_without_a_rom_and_one_that_cant_be_read_say_nothing(host: Folder) -> None:
    (host.commands / "rom.bin").unlink()
    assert read(host) == {"rom": "", "vfct": ""}
    assert host.read(f"{SYS}/rom") == "0"
    (host.root / SYS / "rom").unlink()
    assert read(host) == {"rom": "", "vfct": ""}


def test_another_card_at_the_address_is_left_alone(host: Folder) -> None:
    assert "there is no 10de:2684 any more" in done(host, "read_rom", address=CARD, ids="10de:2684")
    assert host.read(f"{SYS}/rom") == "0"


def test_a_rom_is_kept_byte_for_byte_with_its_hash_and_taken_away_without_a_trace(host: Folder) -> None:
    before = host.tree()
    assert done(host, "keep", content=BOTH) == {"changed": "yes"}
    assert (host.root / KEPT).read_bytes() == BOTH
    assert done(host, "keep", content=BOTH) == {"changed": "no"}
    (host.root / KEPT).unlink()
    assert done(host, "keep", content=BOTH) == {"changed": "yes"}
    assert done(host, "remove") == {"changed": "yes"}
    assert done(host, "remove") == {"changed": "no"}
    assert host.tree() == before


def test_somebody_elses_file_of_that_name_is_neither_written_over_nor_taken_away(host: Folder) -> None:
    host.write(KEPT, "mine")
    assert "which this program hasn't made" in done(host, "keep", content=BOTH)
    assert done(host, "remove") == {"changed": "no"}
    assert host.read(KEPT) == "mine"


def test_a_rom_that_a_vm_needs_stays(host: Folder) -> None:
    done(host, "keep", content=BOTH)
    host.write("etc/pve/qemu-server/103.conf", "hostpci0: mapping=card,romfile=homelab-card.rom,pcie=1\n")
    host.write("etc/pve/qemu-server/104.conf", "hostpci0: mapping=card,romfile=homelab-cardXrom\n")
    assert "VMs that have it: 103" in done(host, "remove")
    assert (host.root / KEPT).read_bytes() == BOTH


def test_without_qemus_folder_nothing_is_made(host: Folder) -> None:
    (host.root / "usr/share/kvm/vgabios.bin").unlink()
    (host.root / "usr/share/kvm").rmdir()
    assert "there is no such folder" in done(host, "keep", content=BOTH)
    assert not (host.root / "usr/share/kvm").exists()
