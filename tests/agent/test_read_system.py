"""The layer read_system on folders that stand for a system: what it says, how far what was put there is still so, and what can't be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from remote_scripts.both.read_system import Answer, Wanted
from remote_scripts.nvidia import driver
from remote_scripts.tools.plain import of_plain
from tests.agent.kit import Host, Refused

HOME = "/var/lib/homelab"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


def read(host: Host) -> dict[str, Any]:
    host.programs.setdefault("uname", lambda *_: "6.8.0-90-generic\n")
    found: dict[str, Any] = host.ask("read", "read_system", Wanted())
    of_plain(Answer, found)
    return found


def test_a_system_of_which_nothing_is_known_is_read(host: Host) -> None:
    found = read(host)
    assert found["distribution"] is None and found["version"] is None
    assert found["cards"] == [] and found["kernels"] == [] and found["drift"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\n', ("debian", "12")),
        ("ID=debian\n", ("debian", None)),
        ("VERSION_ID='24.04'\nID=\"ubuntu\"\nID_LIKE=debian\n", ("ubuntu", "24.04")),
    ],
)
def test_os_release_in_its_shapes(host: Host, text: str, expected: tuple[str, str | None]) -> None:
    host.write("/etc/os-release", text)
    found = read(host)
    assert (found["distribution"], found["version"]) == expected


@pytest.mark.parametrize(
    ("variable", "on"), [(b"\6\0\0\0\0", False), (b"\6\0\0\0\1", True), (b"\6\0\0\0", None), (b"", None)]
)
def test_secure_boot_from_the_firmwares_variable(host: Host, variable: bytes, on: bool | None) -> None:
    place = host.root / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    place.parent.mkdir(parents=True)
    place.write_bytes(variable)
    assert read(host)["secure_boot"] is on


def test_a_firmware_that_tells_nothing_leaves_secure_boot_open(host: Host) -> None:
    (host.root / "sys/firmware/efi").mkdir(parents=True)
    assert read(host)["secure_boot"] is None


def test_kernels_are_those_that_can_be_booted_the_oldest_first(host: Host) -> None:
    for name in ("6.8.0-9-generic", "6.8.0-86-generic", "6.14.0-5-generic"):
        host.write(f"/boot/vmlinuz-{name}", "")
    host.write("/lib/modules/5.15.0-1-generic/updates/dkms/nvidia.ko", "")
    assert read(host)["kernels"] == ["6.8.0-9-generic", "6.8.0-86-generic", "6.14.0-5-generic"]


# -- how far what was put there is still so ---------------------------------------------------------------------------
@pytest.fixture
def installed(host: Host) -> Host:
    """A host with a driver, as the steps leave it."""
    driver.NOTE.write(host.system().files, driver.Left("580.105.08", "packages", "host", "open"))
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  R\n"
    host.write("/proc/driver/nvidia/version", version)
    host.write(f"{LIBRARIES}/libnvidia-ml.so.580.105.08", "")
    (host.root / LIBRARIES[1:] / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.580.105.08")
    host.write("/boot/vmlinuz-6.17.2-1-pve", "")
    host.write("/etc/apt/preferences.d/nvidia", "Pin\n")
    digest = hashlib.sha256(b"Pin\n").hexdigest()
    host.write(f"{HOME}/files/nvidia-packages/etc/apt/preferences.d/nvidia", f"0644 {digest}\n")
    host.write(f"{HOME}/packages/nvidia-packages", "cuda-12\t12.8-1\t-\n")
    host.write(driver.ASKED, "0123abcd\n")
    for step in ("packages", "toolkit"):
        host.write(f"{HOME}/steps/{step}", "hosts.pve\n")
    host.programs["dpkg-query"] = lambda *_: "cuda-12\tinstalled\t12.8-1\nold\tconfig-files\t1\n"
    host.programs["modinfo"] = lambda *_: "version:        580.105.08\nlicense:        Dual MIT/GPL\n"
    return host


def test_what_is_as_the_steps_left_it_has_no_drift(installed: Host) -> None:
    found = read(installed)
    assert found["drift"] == [] and found["steps"] == ["packages", "toolkit"] and found["host_driver"] is None
    assert (found["asked"], found["loaded"]) == ("0123abcd", "580.105.08")


@pytest.mark.parametrize(("change", "line"), [
    pytest.param(lambda host: host.write("/etc/apt/preferences.d/nvidia", "x"), "packages: /etc/apt/preferences.d/nvidia is changed", id="a file"),
    pytest.param(lambda host: (host.root / "etc/apt/preferences.d/nvidia").unlink(), "packages: /etc/apt/preferences.d/nvidia is missing", id="a file is gone"),
    pytest.param(lambda host: host.programs.update({"dpkg-query": lambda *_: "cuda-12\tinstalled\t12.9-1\n"}), "packages: package cuda-12 is 12.9-1, it was 12.8-1", id="a package"),
    pytest.param(lambda host: host.programs.update({"dpkg-query": lambda *_: ""}), "packages: package cuda-12 is gone, it was 12.8-1", id="a package is gone"),
    pytest.param(lambda host: host.write(f"{HOME}/given-up", "590.1.1\n"), "packages: an update was cut short", id="given up by 2.0.0"),
    pytest.param(lambda host: host.write(f"{HOME}/update/kept", '{"phase": "trying"}'), "packages: an update was cut short", id="cut short"),
    pytest.param(lambda host: (host.root / LIBRARIES[1:] / "libnvidia-ml.so.1").unlink(), "packages: its libraries are gone, they were 580.105.08", id="libraries"),
    pytest.param(lambda host: host.programs.update({"modinfo": lambda *_: 1}), "packages: the kernel 6.17.2-1-pve has no module, the driver is 580.105.08", id="a kernel"),
    pytest.param(lambda host: (host.root / "proc/driver/nvidia/version").unlink(), "boot: no module is loaded, the driver is 580.105.08", id="no module"),
    pytest.param(lambda host: host.write("/proc/driver/nvidia/version", "Open Kernel Module 570.1.1\n"), "boot: 570.1.1 is loaded, the driver is 580.105.08", id="another one"),
    pytest.param(lambda host: host.write("/proc/driver/nvidia/version", "NVIDIA UNIX x86_64 Kernel Module  580.105.08\n"), "boot: the proprietary modules are loaded, the open ones are installed", id="another flavour"),
])  # fmt: skip
def test_each_difference_is_a_line_after_its_step(installed: Host, change: Callable[[Host], object], line: str) -> None:
    change(installed)
    assert read(installed)["drift"] == [line.split(": ", 1)]


# -- what can't be read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/etc/os-release", f"{HOME}/nvidia-driver", f"{HOME}/packages/nvidia-packages", f"{HOME}/update/kept"]
)
def test_what_is_there_and_cant_be_read_is_no_nothing(installed: Host, path: str) -> None:
    where = installed.root / path.lstrip("/")
    where.unlink(missing_ok=True)
    where.mkdir(parents=True, exist_ok=True)
    with pytest.raises(Refused, match=f"to read {path}\nfound:  it is no file"):
        read(installed)


def test_packages_that_dpkg_doesnt_tell_are_not_none(installed: Host) -> None:
    installed.programs["dpkg-query"] = lambda *_: 2
    with pytest.raises(Refused, match="wanted: which packages are installed"):
        read(installed)
