"""``python -m homelab rom`` against the lab, over SSH: from the firmware's table to the file, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.cli.rom import main
from lab import Lab
from tests.unit.test_rom import IGPU, image, vfct

KEPT = "usr/share/kvm/homelab-igpu.rom"


@pytest.fixture
def lab(labs: Callable[[str], Lab]) -> Lab:
    return labs("apu")


def settings(lab: Lab, folder: Path, gpus: dict[str, Any]) -> list[str]:
    connection = lab.connection
    ssh = {key: connection[key] for key in ("port", "hostKey", "privateKeyFile")}
    host = {"address": connection["host"], "node": lab.api["node"], "ssh": ssh, "gpus": gpus}
    file = folder / "Pulumi.lab.yaml"
    file.write_text(yaml.safe_dump({"config": {"homelab:hosts": {"pve": host}}}))
    return ["--config-file", str(file)]


def test_a_rom_is_made_used_by_name_and_taken_away(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = settings(lab, tmp_path, {"igpu": {"match": IGPU}})
    content = image(IGPU, kind=3)
    before = lab.snapshot("etc", "var", "usr")
    # Its driver has the card, and neither the card nor the firmware has a ROM: that is said, and nothing is made.
    assert main(["dump", "igpu", *about]) == 2
    assert "0000:c6:00.0 is on amdgpu" in capsys.readouterr().err
    assert lab.snapshot("etc", "var", "usr") == before

    (lab.root / "sys/firmware/acpi/tables/VFCT").write_bytes(vfct(((0xC6, 0, 0), IGPU, content)))
    assert main(["dump", "igpu", *about]) == 0
    said = capsys.readouterr().out
    assert (lab.root / KEPT).read_bytes() == content
    assert hashlib.sha256(content).hexdigest() in said and "from the firmware's table VFCT" in said
    assert "romfile: homelab-igpu.rom" in said

    assert main(["remove", "igpu", *about]) == 0
    assert lab.snapshot("etc", "var", "usr") == before
    assert main(["dump", "other", *about]) == 2
    assert "cards of this host in the settings: igpu" in capsys.readouterr().err
