"""apt, dpkg and downloads on the lab's systems: what they find, what they refuse, and in which words."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from lab.host.versions import holds
from lab.stock import without_subscription
from tests.lab.guest_kit import Vm, scenario

CUDA = "https://developer.download.nvidia.com/compute/cuda/repos"
RUN = "https://us.download.nvidia.com/tesla/580.159.03/NVIDIA-Linux-x86_64-580.159.03.run"
TOOLKIT = "https://nvidia.github.io/libnvidia-container"


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    """A VM with Ubuntu 24.04 and fetched lists."""
    found = Vm(tmp_path, card=False)
    found.output("apt-get -qq update")
    return found


def test_versions_are_compared_as_dpkg_does() -> None:
    versions = (
        "580.159.03-0ubuntu0.24.04.1", "580.173.02-0ubuntu0.24.04.1", "580.178.04-0ubuntu1", "590.48.01-1ubuntu1", "1:1.0",
        "1.0~rc1", "1.0", "1.0-1", "1.0+b1", "535.309.01-0+deb12u1", "1.0.1a", "01.0",
    )  # fmt: skip
    for left, right in itertools.combinations(versions, 2):
        for relation in ("lt", "eq", "gt"):
            done = subprocess.run(["dpkg", "--compare-versions", left, relation, right], check=False)
            assert holds(left, relation, right) == (done.returncode == 0), (left, relation, right)


def test_nothing_is_known_before_the_lists_are_fetched(tmp_path: Path) -> None:
    vm = Vm(tmp_path, card=False)
    assert "E: Unable to locate package docker.io" in vm.refusal("apt-get install -y docker.io", 100)
    vm.output("apt-get -qq update && apt-get -qq install -y docker.io")
    assert vm.output("dpkg-query -W -f='${db:Status-Status} ${Version}' docker.io").startswith("installed 28.2.2-")


@pytest.mark.parametrize(
    ("distribution", "repository", "package", "version"),
    [
        ("ubuntu-24.04", "ubuntu2404", "nvidia-driver-580-open", "580.178.04-0ubuntu1"),
        ("ubuntu-22.04", "ubuntu2204", "nvidia-driver-580-open", "580.178.04-0ubuntu1"),
        ("ubuntu-26.04", "ubuntu2604", "nvidia-driver-open", "620.70.06-1ubuntu1"),
        ("debian-12", "debian12", "nvidia-kernel-open-dkms", "620.70.06-1"),
        ("debian-13", "debian13", "nvidia-kernel-open-dkms", "620.70.06-1"),
    ],
)
def test_each_distribution_has_nvidias_repository(
    tmp_path: Path, distribution: str, repository: str, package: str, version: str
) -> None:
    vm = Vm(tmp_path, scenario(vm={"distribution": distribution}), card=False)
    address = f"{CUDA}/{repository}/x86_64"
    vm.output(
        f"curl -fsSLo /root/k.deb {address}/cuda-keyring_1.1-1_all.deb && dpkg -i /root/k.deb && apt-get -qq update"
    )
    assert f"Candidate: {version}\n" in vm.output(f"apt-cache policy {package}")
    assert f" | {version} | {address}  Packages" in vm.output(f"apt-cache madison {package}")
    suffixed = vm.output("apt-cache pkgnames nvidia-driver-590-open")
    assert not suffixed.strip(), "names with the branch stop at 580"


def test_a_repository_needs_its_key(vm: Vm) -> None:
    vm.output(
        f"echo 'deb [signed-by=/usr/share/keyrings/x.gpg] {CUDA}/ubuntu2404/x86_64/ /' >$HOMELAB_ROOT/etc/apt/sources.list.d/c.list"
    )
    text = vm.refusal("apt-get update", 100)
    assert "NO_PUBKEY A4B469963BF863CC" in text and "is not signed." in text
    vm.output(
        f"curl -fsSL -o $HOMELAB_ROOT/usr/share/keyrings/x.asc {CUDA}/ubuntu2404/x86_64/3bf863cc.pub && sed -i s/x.gpg/x.asc/ $HOMELAB_ROOT/etc/apt/sources.list.d/c.list"
    )
    vm.output("apt-get update")


def test_the_toolkits_list_is_the_documented_one(vm: Vm) -> None:
    keyring = "/usr/share/keyrings/nvidia-container-toolkit-keyring.asc"
    vm.output(
        f"curl -fsSL -o {keyring} {TOOLKIT}/gpgkey && curl -sL {TOOLKIT}/stable/deb/nvidia-container-toolkit.list"
        f" | sed 's#deb https://#deb [signed-by={keyring}] https://#g' >$HOMELAB_ROOT/etc/apt/sources.list.d/toolkit.list"
        " && apt-get -qq update && apt-get -qq install -y nvidia-container-toolkit"
    )
    assert vm.output("nvidia-ctk --version").startswith("NVIDIA Container Toolkit CLI version 1.20.0\n")
    vm.output(
        "apt-get -qq install -y --allow-downgrades "
        + " ".join(
            f"{name}=1.18.0-1"
            for name in (
                "nvidia-container-toolkit",
                "nvidia-container-toolkit-base",
                "libnvidia-container-tools",
                "libnvidia-container1",
            )
        )
    )
    assert "1.18.0" in vm.output("nvidia-ctk --version")


# -- installing ------------------------------------------------------------------------------------------------
def test_a_version_doesnt_pull_its_siblings_down_unless_it_is_pinned(vm: Vm) -> None:
    keyring = f"{CUDA}/ubuntu2404/x86_64/cuda-keyring_1.1-1_all.deb"
    vm.output(f"curl -fsSLo /root/k.deb {keyring} && dpkg -i /root/k.deb && apt-get -qq update")
    text = vm.refusal("apt-get install -y nvidia-driver-580-open=580.159.03-0ubuntu1", 100)
    assert "Depends: libnvidia-gl-580 (= 580.159.03-0ubuntu1) but 580.178.04-0ubuntu1 is to be installed" in text
    vm.output(
        "apt-get -qq install -y nvidia-driver-pinning-580.159.03 && apt-get -qq install -y nvidia-driver-580-open"
    )
    assert vm.output("dpkg-query -W -f='${Version}' libnvidia-compute-580") == "580.159.03-0ubuntu1"
    assert "580.159.03-0ubuntu1 1000" in vm.output("apt-cache policy libnvidia-compute-580")


def test_holds_keep_a_package_where_it_is(vm: Vm) -> None:
    old = "580.159.03-0ubuntu0.24.04.1"
    names = ("nvidia-utils-580", "libnvidia-compute-580", "nvidia-kernel-common-580", "nvidia-firmware-580")
    vm.output("apt-get -qq install -y --no-install-recommends " + " ".join(f"{name}={old}" for name in names))
    vm.output(f"apt-mark hold {' '.join(names)}")
    assert vm.output("apt-mark showhold").split() == sorted(names)
    vm.output("apt-get -qq dist-upgrade -y")
    assert vm.output("dpkg-query -W -f='${Version} ${db:Status-Want}' nvidia-utils-580") == f"{old} hold"
    text = vm.refusal(
        "apt-get install -y nvidia-utils-580=580.173.02-0ubuntu0.24.04.1 libnvidia-compute-580=580.173.02-0ubuntu0.24.04.1",
        100,
    )
    assert "held" in text.lower()
    vm.output(f"apt-mark unhold {' '.join(names)} && apt-get -qq dist-upgrade -y")
    assert vm.output("dpkg-query -W -f='${Version}' nvidia-utils-580").startswith("580.173.02")
    assert "--allow-downgrades" in vm.refusal(f"apt-get install -y {' '.join(f'{n}={old}' for n in names)}", 100)


def test_what_is_removed_leaves_and_what_nobody_needs_goes_with_it(vm: Vm) -> None:
    before = vm.output("dpkg-query -W")
    vm.output("apt-get -qq install -y nvidia-headless-580-open")
    assert "nvidia-headless-580-open" in vm.output("apt-mark showmanual").split()
    assert "nvidia-dkms-580-open" not in vm.output("apt-mark showmanual").split()
    vm.output("apt-get -qq purge -y nvidia-headless-580-open && apt-get -qq autoremove --purge -y")
    assert vm.output("dpkg-query -W") == before
    left = [
        path
        for path in vm.root.rglob("*nvidia*")
        if "Packages" not in path.name
        and "kernel/drivers" not in str(path)
        and path.suffix != ".deb"  # apt-get's cache
    ]
    assert [path for path in left if path.parts[-2] != "apt"] == []


def test_open_and_proprietary_modules_exclude_each_other(vm: Vm) -> None:
    vm.output("apt-get -qq install -y nvidia-dkms-580-open")
    assert "Remv nvidia-dkms-580-open" in vm.output("apt-get install -s nvidia-dkms-580")
    vm.output("apt-get -qq install -y nvidia-dkms-580")
    assert vm.output("dpkg-query -W -f='${db:Status-Status}' nvidia-dkms-580-open") == "config-files"


def test_without_yes_nothing_happens(vm: Vm) -> None:
    assert "Abort." in vm.refusal("apt-get install podman </dev/null", 1)
    assert "no packages found matching podman" in vm.refusal("dpkg-query -W podman", 1)


def test_an_ordinary_user_is_refused(vm: Vm) -> None:
    done = vm.run("apt-get install -y podman", user="ubuntu")
    assert done.returncode == 100 and "are you root?" in done.stderr
    assert vm.run("sudo -n apt-get install -qq -y podman && podman --version", user="ubuntu").returncode == 0


# -- what goes wrong -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whose", [True, "103", "archive.ubuntu.com"])
def test_off_the_network_updates_warn_and_installations_fail(vm: Vm, whose: object) -> None:
    vm.fault("apt-offline", whose)
    done = vm.run("apt-get update")
    assert done.returncode == 0 and "Temporary failure resolving 'archive.ubuntu.com'" in done.stderr
    vm.refusal("apt-get update -o APT::Update::Error-Mode=any", 100)
    assert "E: Unable to fetch some archives" in vm.refusal("apt-get install -y jq", 100)
    vm.fault("apt-offline", "100" if whose is not True else None)
    vm.output("apt-get install -y jq")


def test_downloads_off_the_network(vm: Vm) -> None:
    vm.fault("apt-offline", "103")
    assert "curl: (6) Could not resolve host: us.download.nvidia.com" in vm.refusal(f"curl -fsSLO {RUN}", 6)


def test_other_faults_of_packages(vm: Vm) -> None:
    vm.fault("disk-full", "103")
    assert "No space left on device" in vm.refusal("apt-get install -y jq", 100)
    vm.refusal(f"curl -fsSLo /root/x {RUN}", 23)
    vm.fault("disk-full", None)
    vm.fault("package-missing", "linux-headers-*")
    assert "Unable to locate package" in vm.refusal("apt-get install -y linux-headers-$(uname -r)", 100)
    vm.fault("download-corrupt", "jq_")
    assert "Hash Sum mismatch" in vm.refusal("apt-get install -y jq", 100)


def test_a_damaged_download_has_another_checksum(vm: Vm) -> None:
    fetch = f"cd $HOMELAB_ROOT/root && curl -fsSLO {RUN} && curl -fsSLO {RUN}.sha256sum && sha256sum *.run && cat *.sha256sum"
    assert len({line.split()[0] for line in vm.output(fetch).splitlines()}) == 1
    vm.fault("download-corrupt", ".run")
    assert len({line.split()[0] for line in vm.output(fetch).splitlines()}) == 2
    assert "check sums" in vm.refusal("sh $HOMELAB_ROOT/root/NVIDIA-Linux-x86_64-580.159.03.run --silent", 1)


def test_a_missing_file_is_404(vm: Vm) -> None:
    assert "The requested URL returned error: 404" in vm.refusal(f"curl -fsSL {CUDA}/ubuntu2404/x86_64/nothing", 22)


# -- the host --------------------------------------------------------------------------------------------------
def test_headers_of_a_proxmox_kernel_have_its_name(vm: Vm) -> None:
    host = vm.host
    assert "401  Unauthorized" in host.run("apt-get -qq update").stderr, (
        "a stock host's repository asks for a subscription"
    )
    assert "Unable to locate package" in host.run("apt-get install -y proxmox-headers-$(uname -r)").stderr
    without_subscription(host.root)
    host.output("apt-get -qq update")
    host.output("apt-get -qq install -y proxmox-headers-$(uname -r)")
    assert (host.root / "usr/lib/modules/6.17.2-1-pve/build").is_symlink()
