"""What of NVIDIA's driver is read on a system: who has the cards, what is installed, and what may go on."""

from __future__ import annotations

import pytest

from remote_scripts.nvidia import driver, driver_installer, nvidia
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from tests.agent.kit import Host
from tests.rows import rows

VGA, AUDIO, NVIDIA, AMD = "0x030000", "0x040300", "0x10de", "0x1002"


@pytest.mark.parametrize(
    ("functions", "holder"),
    [
        ([], ""),
        ([(VGA, NVIDIA, "nouveau")], "nouveau"),
        ([(VGA, NVIDIA, "NovaCore")], "NovaCore"),
        ([(VGA, NVIDIA, "nvidia")], ""),
        ([(VGA, NVIDIA, "")], ""),
        ([(VGA, NVIDIA, "vfio-pci")], "vfio-pci"),
        ([(VGA, NVIDIA, "vfio-pci"), (VGA, NVIDIA, "vfio-pci")], "vfio-pci"),
        ([(VGA, NVIDIA, "vfio-pci"), (VGA, NVIDIA, "nvidia")], ""),
        ([(VGA, NVIDIA, "nvidia"), (VGA, NVIDIA, "vfio-pci")], ""),
        ([(VGA, NVIDIA, "vfio-pci"), (VGA, NVIDIA, "")], ""),
        ([(VGA, NVIDIA, "vfio-pci"), (VGA, NVIDIA, "nouveau")], "nouveau"),
        ([(VGA, NVIDIA, "nouveau"), (VGA, NVIDIA, "vfio-pci")], "nouveau"),
        ([(AUDIO, NVIDIA, "nouveau"), (VGA, AMD, "nouveau")], ""),
        ([(VGA, AMD, "amdgpu"), (AUDIO, NVIDIA, "snd"), (VGA, NVIDIA, "nouveau")], "nouveau"),
    ],
)
def test_who_keeps_the_driver_from_nvidias_cards(
    host: Host, functions: list[tuple[str, str, str]], holder: str
) -> None:
    for number, (kind, vendor, name) in enumerate(functions):
        host.function(f"0000:0{number}:00.0", kind, driver=name, vendor=f"{vendor}\n")
    assert driver.holder(host.system()) == holder


@rows(
    ("version", "wanted", "fits"),
    [
        ("580.105.08", "580", True),
        ("580.105.08", "580.105.08", True),
        ("580.105.08", "580.105", False),
        ("5800.1", "580", False),
        ("", "580", False),
        ("", "", False),
    ],
)
def test_a_version_is_the_wanted_one_or_of_the_wanted_branch(version: str, wanted: str, fits: bool) -> None:
    assert driver.fits(version, wanted) is fits


@rows(
    ("noted", "source", "goes_on"),
    [
        ("packages", "run", False),
        ("run", "packages", False),
        ("packages", "packages", True),
        ("packages", "either", True),
        ("run", "either", True),
        ("found", "run", True),
        ("", "packages", True),
    ],
)
def test_a_driver_of_the_other_source_goes_on_only_where_others_have_put_it_there(
    noted: str, source: str, goes_on: bool
) -> None:
    assert driver.is_source_wanted(driver.Left(source=noted), source) is goes_on


@rows(
    ("version", "is_later"),
    [("550.40.07", True), ("550.40.06", False), ("550.127.05", True), ("1000.1", True), ("545.99.99", False)],
)
def test_versions_are_compared_by_number(version: str, is_later: bool) -> None:
    assert driver_installer.is_at_least("550.40.07", version) is is_later


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", Module("580.95.05", "open")),
        ("NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8", Module("550.163.01", "proprietary")),
        ("NVIDIA UNIX x86_64 Kernel Module  390.157  Wed Oct 12", Module("390.157", "proprietary")),
        ("", Module()),
    ],
)
def test_the_module_that_is_loaded_is_of_a_version_and_a_flavour(host: Host, text: str, module: Module) -> None:
    if text:
        host.write(f"{nvidia.PROC}/version", f"NVRM version: {text}\nGCC version:  gcc version 12.2.0\n")
    assert nvidia.loaded(host.system()) == module


@pytest.mark.parametrize(
    ("modinfo", "module"),
    [
        ("version:        580.95.05\nlicense:        Dual MIT/GPL\n", Module("580.95.05", "open")),
        ("license:        NVIDIA\nversion:        550.163.01\n", Module("550.163.01", "proprietary")),
        ("", Module()),
    ],
)
@pytest.mark.parametrize("name", ["nvidia", "nvidia-current"])
def test_the_module_that_a_kernel_would_load_is_asked_of_that_kernel(
    host: Host, name: str, modinfo: str, module: Module
) -> None:
    """Debian's packages have it in a file of another name, which only modprobe knows; a link of theirs may lead nowhere."""
    if name != "nvidia":
        host.write("/etc/modprobe.d/nvidia.conf", f"install nvidia modprobe -i {name} $CMDLINE_OPTS\n")
        (host.root / "etc/modprobe.d/nvidia-blacklists-nouveau.conf").symlink_to("/etc/nvidia/gone.conf")
    host.programs["modinfo"] = lambda arguments, _: modinfo if [*arguments] == ["-k", "6.8.12-9-pve", name] else 1
    assert driver.module(host.system(), "6.8.12-9-pve") == module


def test_a_modinfo_that_doesnt_answer_isnt_taken_for_no_module(host: Host) -> None:
    """A driver without modules would be replaced without a way back."""
    host.programs["modinfo"] = lambda *_: Done(TIMED_OUT, b"")
    with pytest.raises(Failure, match="6.8.12-9-pve would load"):
        driver.module(host.system(), "6.8.12-9-pve")
