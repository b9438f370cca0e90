"""Hosts that owners have described in public: what `homelab init` and the doctor say of each, over SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from homelab.cli.command_line import main
from lab import Lab
from tests.conftest import shared
from tests.lab.stack_kit import host_settings


@dataclass
class Owner:
    """One of them: a host, a project's folder, and what its commands say."""

    lab: Lab
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def init(self, *words: str) -> tuple[int, str]:
        """Exit status and output, on one line; the settings file stays as it is."""
        where, key = f"{self.lab.connection['host']}:{self.lab.connection['port']}", self.lab.connection["hostKey"]
        return self._ran("init", where, "--host-key", key, "--yes", "--dry-run", *words)

    def doctor(self, *words: str) -> tuple[int, str]:
        file = self.folder / "Pulumi.owner.yaml"
        hosts = {"pve": {**host_settings(self.lab), "gpus": {}}}
        file.write_text(yaml.safe_dump({"config": {"homelab:hosts": hosts}}))
        return self._ran("doctor", *words, "--config-file", str(file))

    def _ran(self, *words: str) -> tuple[int, str]:
        status = main([*words])
        return status, " ".join("".join(self.capsys.readouterr()).split())


@pytest.fixture
def owner(
    labs: Callable[[str], Lab],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Iterator[Owner]:
    lab = labs(str(shared("cases6", f"{request.param}.yaml")))
    (tmp_path / "Pulumi.yaml").write_text("name: homelab\nruntime: python\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pulumi").write_text("#!/bin/sh\necho 'Backend URL: file://~'\n")
    (tmp_path / "bin/pulumi").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "x")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOMELAB_PASSWORD", lab.connection["password"])
    yield Owner(lab, tmp_path, capsys)


@pytest.mark.parametrize("owner", ["apu-seabios-two-options"], indirect=True)
def test_a_processors_graphics_that_are_the_only_screen(owner: Owner) -> None:
    """Both options and the ROM stay; what a reset may do is said when they are offered, and by the doctor of the VM that has them."""
    status, said = owner.init()
    offer = said.partition("not to be the host's console")[0]
    assert status == 2 and "the host's only screen" in offer and "can freeze the whole host" in offer
    assert "OVMF and ROM files" in offer
    status, said = owner.init("--card", "01:00=100", "--set", "gpus.phoenix3.allowConsole=true")
    assert status == 0 and "mapping=phoenix3,pcie=1,romfile=vbios_780m.bin" in said and "hostpci1" not in said
    status, said = owner.doctor("vm", "100")
    notes = said.partition("to know")[2]
    assert (
        status == 0
        and "can freeze the whole host" in notes
        and "is the host's only screen, which stays dark from this start on" in notes
    )


@pytest.mark.parametrize("owner", ["card-and-root-disk-in-group-0"], indirect=True)
def test_a_card_in_one_group_with_the_root_disk(owner: Owner) -> None:
    status, said = owner.init("--card", "07:00=100")
    assert status == 2 and "carries the disk nvme0n1" in said and "containers, or the host itself, can have it" in said
    order = [
        "ACS on in the firmware's setup, with IOMMU and AER",
        "into another slot",
        "iommu.acsOverride is no way out",
    ]
    places = [said.find(text) for text in order]
    assert -1 not in places and places == sorted(places)
    status, said = owner.init("--card", "07:00=110")
    assert status == 0 and "rtx4070-max-q-mobile → container 110 (ollama)" in said


@pytest.mark.parametrize("owner", ["kepler-for-containers"], indirect=True)
def test_a_card_whose_last_driver_no_kernel_of_the_host_builds(owner: Owner) -> None:
    for whom in ("105", "host"):
        status, said = owner.init("--card", f"01:00={whom}")
        assert status == 2 and "branch 470, for 10de:0ff3 (Kepler): its last release builds for Linux 6.9" in said
        assert "give the card to a VM" in said and "Nothing was changed." in said
    status, said = owner.init("--card", "01:00=106")
    assert status == 0 and "nvidia: {driver: '470', containerToolkit: docker}" in said, "no CUDA of today builds for it"
    status, said = owner.doctor("container", "105")
    assert status == 1 and "give the card to a VM" in said and "dkms autoinstall" not in said and "pct set" not in said


@pytest.mark.parametrize("owner", ["apt-pin-of-the-driver"], indirect=True)
def test_a_driver_that_its_owner_has_pinned(owner: Owner) -> None:
    """It stays; libraries come in its very version. With another branch the pin is named before anything is done."""
    status, said = owner.init("--card", "01:00=110")
    assert status == 0 and "in place of 590.48.01, which is loaded, and stays" in said and "pins versions" not in said
    assert "NVIDIA's stack of containers.frigate: driver 590.48.01" in said
    assert "NVIDIA's stack of hosts." not in said
    status, said = owner.init("--card", "01:00=110", "--set", "nvidia.driver=580")
    assert status == 0 and "/etc/apt/preferences.d/nvidia-pin pins versions of NVIDIA's packages" in said
    assert "580.178.04 comes in place of 590.48.01 all the same" in said


@pytest.mark.parametrize("owner", ["blackwell-container-with-intel-nodes"], indirect=True)
def test_a_container_that_has_another_makers_nodes(owner: Owner) -> None:
    status, said = owner.doctor("container", "130")
    assert (
        status == 1
        and "its configuration gives it no node of NVIDIA's, but /dev/dri/renderD128, /dev/dri/card0" in said
    )
    status, said = owner.init()
    assert status == 0 and "→ container 130 (llm)" in said and "reboot: not needed" in said
    assert "dev2: not there -> /dev/nvidia0" in said and " dev0:" not in said and " dev1:" not in said
    assert "driver 595.71.05, which is there" in said
