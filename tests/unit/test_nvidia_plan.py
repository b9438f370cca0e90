"""homelab/nvidia/checks.py and homelab/nvidia/plan.py: what can't work is refused with its reason, the rest becomes an exact plan."""

from __future__ import annotations

import datetime
import fnmatch
import itertools
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.nvidia.checks import refusals
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.driver_source import source_of
from homelab.nvidia.flavour import choose
from homelab.nvidia.plan import Plan, all_refusals, packages_to_ask_for, plan_stack
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.nvidia import Nvidia
from remote_scripts.shared.driver import FAMILY

TODAY = datetime.date(2026, 11, 20)
RTX_5090, RTX_3090, GTX_1080_TI, V100 = "10de:2b85", "10de:2204", "10de:1b06", "10de:1db4"
UBUNTU: dict[str, Any] = {
    "distribution": "ubuntu",
    "version": "24.04",
    "architecture": "x86_64",
    "kernels": ("6.8.0-86-generic",),
    "running": "6.8.0-86-generic",
    "secure_boot": False,
    "cards": (RTX_5090,),
    "loaded": "",
    "nouveau": False,
}
PROXMOX: dict[str, Any] = {
    "distribution": "debian",
    "version": "13",
    "architecture": "x86_64",
    "kernels": ("6.14.11-9-pve", "6.17.13-2-pve"),
    "running": "6.17.13-2-pve",
    "secure_boot": False,
    "cards": (RTX_3090,),
    "loaded": "",
}
# What no repository of a distribution has.
INSTALLER_ALONE = {("debian", "13", 580), ("ubuntu", "26.04", 590)}
CONTAINER: dict[str, Any] = {"distribution": "ubuntu", "version": "24.04", "host_driver": "580.105.08"}


def request(target: Target, system: dict[str, Any] | None = None, **settings: Any) -> Request:
    return Request(target, Nvidia.model_validate(settings), SystemFacts(**(system or {})), "vms.gaming", today=TODAY)


def planned(target: Target, system: dict[str, Any], **settings: Any) -> Plan:
    return plan_stack(request(target, system, **settings))


def why_flavour(target: Target, system: dict[str, Any], **settings: Any) -> str:
    choice = choose(request(target, system, **settings))
    assert choice
    return choice.why


def refusal(target: Target, system: dict[str, Any] | None = None, **settings: Any) -> HomelabError:
    (error,) = refusals(request(target, system, **settings))
    return error


# -- the examples --------------------------------------------------------------------------------------
def test_an_rtx_5090_in_an_ubuntu_vm() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8", containerToolkit="docker")
    assert plan.flavour == "open" and "open modules alone" in why_flavour("vm", UBUNTU, driver="580")
    assert plan.packages == (
        "nvidia-dkms-580-open=580.*",
        "libnvidia-compute-580=580.*",
        "nvidia-utils-580=580.*",
        "libnvidia-decode-580=580.*",
        "libnvidia-encode-580=580.*",
    )
    assert plan.prerequisites[-3:] == ("dkms", "linux-headers-6.8.0-86-generic", "linux-headers-generic")
    assert plan.cuda and plan.cuda.packages == ("cuda-toolkit-12-8",)
    assert plan.cuda.nvcc == "/usr/local/cuda-12.8/bin/nvcc"
    assert plan.toolkit and (plan.toolkit.runtime, plan.toolkit.cdi) == ("docker", "")
    assert [one.list_file.rpartition("/")[2] for one in plan.repositories] == [
        "homelab-cuda.list",
        "homelab-nvidia-container-toolkit.list",
    ]
    assert plan.repositories[0].line.endswith("/compute/cuda/repos/ubuntu2404/x86_64 /\n")
    key = "[signed-by=/usr/share/keyrings/homelab-cuda.asc,EB693B3035CD5710E231E123A4B469963BF863CC]"
    assert plan.repositories[0].line.startswith(f"deb {key} https://")
    assert plan.repositories[1].key_url == "https://nvidia.github.io/libnvidia-container/gpgkey"
    assert plan.notes == () and plan.run is None


def test_a_proxmox_host_gets_headers_for_every_kernel() -> None:
    plan = planned("host", PROXMOX, driver="595")
    names = ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libcuda1", "libnvcuvid1", "libnvidia-encode1")
    assert plan.packages == tuple(f"{name}=595.*" for name in names)
    # The last one is for updates of an opt-in kernel, which the default's isn't for.
    kernels = ("6.14.11-9-pve", "6.17.13-2-pve")
    headers = (*(f"proxmox-headers-{kernel}" for kernel in kernels), "proxmox-default-headers", "proxmox-headers-6.17")
    assert plan.prerequisites[-4:] == headers
    run = planned("host", PROXMOX, driver="580").run
    assert run and run.prerequisites[-4:] == headers and "--dkms" in run.arguments
    assert plan.repositories[0].key_url.endswith("/debian13/x86_64/8793F200.pub")


def test_a_container_gets_exactly_the_hosts_version_and_no_modules() -> None:
    offered = {
        name: ("580.105.08-1ubuntu1", "580.178.04-1ubuntu1") for name in ("libnvidia-compute-580", "nvidia-utils-580")
    }
    plan = planned("lxc", CONTAINER | {"offered": offered}, containerToolkit="docker", cuda="12.8")
    assert (plan.version, plan.flavour, plan.source) == ("580.105.08", None, "either")
    assert plan.packages == ("libnvidia-compute-580=580.105.08-1ubuntu1", "nvidia-utils-580=580.105.08-1ubuntu1")
    assert plan.no_recommends and not any("headers" in name or "dkms" in name for name in plan.prerequisites)
    assert plan.toolkit and plan.toolkit.cdi == "/etc/cdi/nvidia.yaml"


def test_a_container_whose_repositories_lack_the_version_takes_nvidias_installer() -> None:
    offered = {name: ("580.178.04-1ubuntu1",) for name in ("libnvidia-compute-580", "nvidia-utils-580")}
    plan = planned("lxc", CONTAINER | {"offered": offered})
    assert plan.source == "run" and plan.packages == () and plan.repositories == () and plan.preferences is None
    assert plan.run is not None
    assert plan.run.url == (
        "https://download.nvidia.com/XFree86/Linux-x86_64/580.105.08/NVIDIA-Linux-x86_64-580.105.08.run"
    )
    assert plan.run.checksum_url == f"{plan.run.url}.sha256sum"
    assert plan.run.sha256 == "d9c6e8188672f3eb74dd04cfa69dd58479fa1d0162c8c28c8d17625763293475"
    assert "--no-kernel-module" in plan.run.arguments and "kmod" in plan.run.prerequisites
    assert not any("kernel-module-type" in argument for argument in plan.run.arguments)


def test_a_container_whose_repositories_were_not_read_has_both_ways() -> None:
    plan = planned("lxc", CONTAINER)
    assert plan.source == "either" and plan.run and plan.packages[0] == "libnvidia-compute-580=580.105.08-*"


# -- beside CUDA -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cuda", "major"), [("12.8", 12), ("12.8.1", 12), ("13.0", 13)])
def test_cudnn_and_nccl_are_those_of_the_major_release_of_cuda(cuda: str, major: int) -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda=cuda, cudnn="9", nccl=True)
    assert plan.cuda and plan.cuda.library_packages == (
        f"libcudnn9-cuda-{major}",
        f"libcudnn9-dev-cuda-{major}",
        f"libnccl2=*+cuda{major}.*",
        f"libnccl-dev=*+cuda{major}.*",
    )
    assert plan.cuda.libraries == ("libcudnn.so.9", "libnccl.so.2")
    asked = packages_to_ask_for(request("vm", UBUNTU, driver="580", cuda=cuda, cudnn="9", nccl=True))
    assert {f"libcudnn9-cuda-{major}", "libnccl2", "libnccl-dev"} <= set(asked)


def test_cuda_alone_brings_neither() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8")
    assert plan.cuda and (plan.cuda.library_packages, plan.cuda.libraries) == ((), ())


@pytest.mark.parametrize("settings", [{"cudnn": "9"}, {"nccl": True}])
def test_they_are_not_had_without_cuda(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected nvidia.cuda"):
        request("vm", UBUNTU, driver="580", **settings)


def test_a_cudnn_that_nobody_knows_is_refused() -> None:
    error = refusal("vm", UBUNTU, driver="580", cuda="12.8", cudnn="7")
    assert error.next.startswith('set nvidia.cudnn: "9"')


def test_a_nccl_of_another_cuda_alone_is_not_taken() -> None:
    offered = {"libnccl2": ("2.27.3-1+cuda12.9",), "libnccl-dev": ("2.27.3-1+cuda12.9",)}
    with pytest.raises(HomelabError, match="libnccl2, libnccl-dev"):
        planned("vm", UBUNTU | {"offered": offered}, driver="580", cuda="13.0", nccl=True)
    newer = {name: ("2.9.9-1+cuda12.9", *versions, "2.28.3-1+cuda13.0") for name, versions in offered.items()}
    plan = planned("vm", UBUNTU | {"offered": newer}, driver="580", cuda="12.8", nccl=True)
    assert plan.cuda and plan.cuda.library_packages == ("libnccl2=2.27.3-1+cuda12.9", "libnccl-dev=2.27.3-1+cuda12.9")


# -- what the driver is for ------------------------------------------------------------------------------------
BASE = ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580")
VIDEO = ("libnvidia-decode-580", "libnvidia-encode-580")
GRAPHICS = ("libnvidia-gl-580", "libnvidia-fbc1-580")
GUESTS = [(row.id, row.version) for row in load().packaging.distributions]


def offering(*names: str, version: str = "580.178.04-1ubuntu1") -> dict[str, Any]:
    return UBUNTU | {"offered": dict.fromkeys(names, (version,))}


@pytest.mark.parametrize(
    ("named", "packages"),
    [(None, BASE + VIDEO), (["compute"], BASE), (["compute", "video"], BASE + VIDEO),
     (["compute", "graphics"], BASE + GRAPHICS), (["graphics", "compute", "video"], BASE + VIDEO + GRAPHICS)],
)  # fmt: skip
def test_the_packages_are_those_of_what_the_driver_is_for(named: list[str] | None, packages: tuple[str, ...]) -> None:
    plan = planned("vm", offering(*BASE, *VIDEO, *GRAPHICS), driver="580", capabilities=named)
    assert tuple(name.partition("=")[0] for name in plan.packages) == packages
    assert {name.partition("=")[2] for name in plan.packages} == {"580.178.04-1ubuntu1"}


@pytest.mark.parametrize(("distribution", "version"), GUESTS)
@pytest.mark.parametrize("branch", [580, 595])
@pytest.mark.parametrize("source", ["auto", "run"])
def test_every_system_has_a_way_to_video_and_graphics(
    distribution: str, version: str, branch: int, source: str
) -> None:
    system = {"distribution": distribution, "version": version, "cards": (RTX_3090,), "running": "6.8.0-1-generic"}
    plan = planned("vm", system, driver=str(branch), source=source, capabilities=["compute", "video", "graphics"])
    names = " ".join(plan.packages)
    if source == "run" or (distribution, version, branch) in INSTALLER_ALONE:
        assert plan.run and "--no-opengl-files" not in plan.run.arguments and "libegl1" in plan.run.prerequisites
    else:
        assert "encode" in names and "fbc1" in names and ("libnvcuvid1" in names or "decode" in names)
    assert plan.capabilities == ("compute", "video", "graphics")


def test_the_installer_leaves_graphics_out_where_nobody_asked_for_them() -> None:
    plan = planned("vm", UBUNTU, driver="580.105.08", source="run")
    assert plan.run and "--no-opengl-files" in plan.run.arguments and "libegl1" not in plan.run.prerequisites
    assert plan.capabilities == ("compute", "video"), "it brings NVENC and NVDEC in every case"


def test_video_that_is_not_offered_is_left_out_with_a_note() -> None:
    plan = planned("vm", offering(*BASE), driver="580")
    assert len(plan.packages) == 3 and plan.capabilities == ("compute",) and not plan.demanded
    assert any("don't offer the packages of video" in note for note in plan.notes)


def test_demanded_video_that_is_not_offered_is_refused_or_comes_by_installer() -> None:
    with pytest.raises(HomelabError, match="not offered: libnvidia-decode-580, libnvidia-encode-580"):
        offered = offering(*BASE) | {"offered": offering(*BASE)["offered"] | dict.fromkeys(VIDEO, ())}
        planned("vm", offered, driver="580.178.04", source="packages", capabilities=["compute", "video"])
    plan = planned("vm", offered, driver="580.178.04", capabilities=["compute", "video"])
    assert plan.source == "run" and plan.capabilities == ("compute", "video")


def test_packages_of_capabilities_that_the_settings_leave_out_are_unwanted() -> None:
    assert planned("vm", UBUNTU, driver="580").unwanted == ()
    plan = planned("vm", UBUNTU, driver="580", capabilities=["compute", "video"])
    assert set(GRAPHICS) <= set(plan.unwanted) and not set(VIDEO) & set(plan.unwanted)


def test_graphics_in_a_container_take_more_than_libraries_which_is_said() -> None:
    notes = planned("lxc", CONTAINER, capabilities=["compute", "graphics"]).notes
    assert any("nvidia-drm" in note for note in notes)


# -- cards -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("driver", ["535", "550", "560", "565", "565.77"])
def test_an_rtx_5090_needs_570_from_settings_alone(driver: str) -> None:
    error = refusal("vm", {"cards": (RTX_5090,)}, driver=driver)
    assert (
        "10de:2b85 (Blackwell)" in error.wanted and "branch 570 or later, with the open kernel modules" in error.wanted
    )
    assert driver in error.found
    assert '"565+" is wrong' in error.why
    assert error.next == 'set nvidia.driver: "580"'


@pytest.mark.parametrize("driver", ["570", "570.86.16", "580", "595", "610.57.04", "615", "620"])
def test_an_rtx_5090_takes_570_and_later(driver: str) -> None:
    assert refusals(request("vm", {"cards": (RTX_5090,)}, driver=driver)) == []


@pytest.mark.parametrize(("card", "name"), [(GTX_1080_TI, "Pascal"), (V100, "Volta"), ("10de:13c2", "Maxwell")])
@pytest.mark.parametrize("driver", ["590", "595.58.03", "610"])
def test_branches_after_580_have_dropped_older_cards(card: str, name: str, driver: str) -> None:
    error = refusal("vm", {"cards": (card,)}, driver=driver)
    assert f"branch 580 is the last one that knows {name} cards" in error.why
    assert error.next == 'set nvidia.driver: "580"'


def test_a_fermi_card_has_no_driver_here() -> None:
    assert "use a newer card" in refusal("vm", {"cards": ("10de:06c0",)}, driver="470").next


def test_older_cards_get_the_proprietary_modules() -> None:
    plan = planned("vm", UBUNTU | {"cards": (GTX_1080_TI,)}, driver="580")
    assert plan.flavour == "proprietary" and plan.packages[0] == "nvidia-dkms-580=580.*"
    assert "need a GSP" in why_flavour("vm", {"cards": (GTX_1080_TI,)}, driver="580")


@pytest.mark.parametrize(("target", "way"), [("host", "VM of its own"), ("vm", "different VMs")])
def test_blackwell_and_pascal_can_not_share_a_kernel(target: Target, way: str) -> None:
    error = refusal(target, {"cards": (RTX_5090, GTX_1080_TI)}, driver="580")
    assert "works with the open ones alone" in error.found and "with the proprietary ones alone" in error.found
    assert way in error.next


def test_pascal_and_ampere_share_the_proprietary_modules() -> None:
    assert planned("host", PROXMOX | {"cards": (RTX_3090, GTX_1080_TI)}).flavour == "proprietary"


@pytest.mark.parametrize(
    ("card", "flavour", "driver", "why"),
    [
        (RTX_5090, "proprietary", "580", "No devices were found"),
        (GTX_1080_TI, "open", "580", "GSP"),
        (RTX_3090, "proprietary", "615", "open modules alone"),
        (RTX_3090, "open", "470", "proprietary modules alone"),
    ],
)
def test_a_flavour_that_can_not_be(card: str, flavour: str, driver: str, why: str) -> None:
    assert why in refusal("vm", {"cards": (card,)}, driver=driver, flavour=flavour).why


def test_a_flavour_that_can_be_is_taken() -> None:
    plan = planned("vm", UBUNTU | {"cards": (RTX_3090,)}, driver="580", flavour="proprietary")
    assert plan.flavour == "proprietary"


def test_branches_from_615_on_have_the_open_modules_alone() -> None:
    plan = planned("vm", UBUNTU | {"cards": (RTX_3090,)}, driver="615")
    assert plan.flavour == "open" and plan.packages[0] == "nvidia-dkms-open=615.*"


def test_an_unknown_card_counts_as_a_new_one_with_a_note() -> None:
    plan = planned("vm", UBUNTU | {"cards": ("10de:3f01",)})
    assert plan.flavour == "open"
    assert any("10de:3f01 (unknown): taken for a card that is newer" in note for note in plan.notes)


def test_an_unknown_card_needs_the_open_modules() -> None:
    assert "10de:3f01" in refusal("vm", {"cards": ("10de:3f01",)}, driver="580", flavour="proprietary").found
    assert "10de:3f01" in refusal("host", {"cards": ("10de:3f01", GTX_1080_TI)}, driver="580").found


def test_a_systems_cards_are_nvidias() -> None:
    assert "1002:744c" in refusal("vm", {"cards": ("1002:744c",)}, driver="580").found
    assert refusals(request("vm", {"cards": ("1002:13c0", RTX_5090)}, driver="580")) == []


def test_ids_may_be_written_in_capitals() -> None:
    assert "10de:2b85 (Blackwell)" in refusal("vm", {"cards": ("10DE:2B85",)}, driver="565").wanted


# -- the driver ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cards", "branch"),
    [((), 580), ((RTX_5090,), 580), ((GTX_1080_TI,), 580), (("10de:128b",), 470)],
)
def test_without_a_driver_in_the_settings_the_first_that_knows_the_cards(cards: tuple[str, ...], branch: int) -> None:
    driver = request("vm", {"cards": cards}).driver
    assert driver is not None and driver.branch == branch


def test_a_branch_that_is_none_is_refused() -> None:
    error = refusal("vm", driver="581")
    assert "Windows" in error.why and "580" in error.wanted


def test_a_branch_newer_than_the_data_is_accepted_with_a_note() -> None:
    plan = planned("vm", UBUNTU, driver="640.10.02")
    assert plan.flavour == "open" and any("newer than this program's data" in note for note in plan.notes)


def test_a_branch_whose_life_is_over_is_said() -> None:
    plan = planned("vm", UBUNTU, driver="570")
    assert any("branch 570 has reached its end of life (2026-02)" in note for note in plan.notes)
    assert not any("end of life" in note for note in planned("vm", UBUNTU, driver="580").notes)


def test_an_exact_version_is_pinned_exactly_and_a_branch_as_a_branch() -> None:
    exact, branch = (planned("vm", UBUNTU, driver=driver).preferences for driver in ("580.105.08", "580"))
    assert exact and "Pin: version 580.105.08-*\nPin-Priority: 1001" in exact.content
    assert branch and "Pin: version 580.*\n" in branch.content


def test_unattended_upgrades_leave_the_driver_alone() -> None:
    plan = planned("vm", UBUNTU, driver="580")
    assert plan.unattended and plan.unattended.content.startswith("Unattended-Upgrade::Package-Blacklist {\n")
    assert '  "libnvidia-";\n' in plan.unattended.content
    assert planned("vm", UBUNTU, driver="580", source="run").unattended is None


# Debian's names: each depends on others of its very version (nvidia-graphics-drivers, debian/control).
@pytest.mark.parametrize(
    "name", ["libgl1-nvidia-glvnd-glx", "libglx-nvidia0", "libgles-nvidia2", "libegl-nvidia0", "nvidia-cuda-mps"]
)
def test_what_is_of_one_version_is_pinned_left_alone_and_replaced_together(name: str) -> None:
    packaging = load().packaging
    assert any(fnmatch.fnmatchcase(name, pattern) for pattern in packaging.pinned)
    assert any(map(name.startswith, packaging.unattended)) and FAMILY.search(name)


@pytest.mark.parametrize(
    ("system", "running", "follows"),
    [
        (("ubuntu", "24.04"), "6.8.0-86-generic", "linux-headers-generic"),
        (("ubuntu", "24.04"), "6.14.0-33-generic", "linux-headers-generic-hwe-24.04"),
        (("ubuntu", "22.04"), "5.15.0-160-generic", "linux-headers-generic"),
        (("ubuntu", "22.04"), "6.8.0-60-generic", "linux-headers-generic-hwe-22.04"),
        (("debian", "12"), "6.1.0-40-cloud-amd64", "linux-headers-cloud-amd64"),
        (("debian", "13"), "6.12.48+deb13-amd64", "linux-headers-amd64"),
        (("debian", "13"), "6.12.48", "linux-headers-6.12.48"),
    ],
)
def test_headers_follow_the_kernel_that_runs(system: tuple[str, str], running: str, follows: str) -> None:
    changes = {"distribution": system[0], "version": system[1], "kernels": (running,), "running": running}
    prerequisites = planned("vm", UBUNTU | changes, driver="580").prerequisites
    assert prerequisites[-1] == follows and f"linux-headers-{running}" in prerequisites


def test_the_container_toolkit_comes_from_its_own_repository() -> None:
    plan = planned("vm", UBUNTU, driver="580", containerToolkit="docker")
    assert plan.preferences and "Pin: origin nvidia.github.io" in plan.preferences.content


# -- kernels and Secure Boot -----------------------------------------------------------------------------------
def test_a_mirror_may_keep_what_nvidias_own_repository_has_no_more() -> None:
    system = {"distribution": "debian", "version": "13", "cards": ("10de:2b85",)}
    settings = {"driver": "580", "cuda": "13.0", "source": "packages"}
    mirror = {"mirror": {"cuda": "https://mirror.lan/cuda"}}
    errors = all_refusals(request("vm", system, **settings))
    assert {error.wanted.partition(" for ")[0] for error in errors} == {
        "vms.gaming: packages of branch 580",
        "vms.gaming: cuda-toolkit-13-0, from NVIDIA's repository",
    }
    assert all_refusals(request("vm", system, **settings, **mirror)) == []
    source = source_of(request("vm", system, driver="580", **mirror))
    assert source is not None and source.source == "either"


def test_headers_that_no_repository_has_are_refused_for_each_kernel_of_a_host() -> None:
    bare = PROXMOX | {"kernels": ("6.14.11-9-pve", "6.17.13-2-pve"), "without_headers": ("6.14.11-9-pve",)}
    error = refusal("host", bare, driver="580")
    assert "proxmox-headers-6.14.11-9-pve" in error.found and "No-Subscription" in error.next
    assert refusals(request("host", bare | {"loaded": "580.105.08"}, driver="580")) == []
    assert refusals(request("host", bare | {"kernels": ("6.17.13-2-pve",)}, driver="580")) == []


def test_a_guest_needs_headers_of_its_running_kernel_alone() -> None:
    guest = UBUNTU | {"running": "6.8.0-86-generic", "without_headers": ("6.8.0-9-generic",)}
    assert refusals(request("vm", guest, driver="580")) == []
    error = refusal("vm", guest | {"without_headers": ("6.8.0-86-generic",)}, driver="580")
    assert "linux-headers-6.8.0-86-generic" in error.found and "Subscription" not in error.next


def test_a_containers_kernel_is_the_hosts_matter() -> None:
    system = CONTAINER | {"host_driver": "550.163.01", "kernels": ("6.17.13-2-pve",), "secure_boot": True}
    assert refusals(request("lxc", system)) == []


@pytest.mark.parametrize("target", ["vm", "host"])
def test_secure_boot_is_said_before_anything_is_installed(target: Target) -> None:
    error = refusal(target, {"secure_boot": True, "cards": (RTX_3090,)}, driver="580")
    assert "Key was rejected by service" in error.why
    assert "either turn Secure Boot off" in error.next and "mokutil --import" in error.next
    assert refusals(request(target, {"secure_boot": True, "mok_enrolled": True, "cards": (RTX_3090,)})) == []


@pytest.mark.parametrize(
    ("distribution", "key"),
    [
        ({"distribution": "debian", "version": "13"}, "/var/lib/dkms/mok.pub"),
        # dkms has that of Ubuntu's own program there (dkms.in, prepare_mok).
        ({"distribution": "ubuntu", "version": "24.04"}, "/var/lib/shim-signed/mok/MOK.der"),
    ],
)
def test_the_key_to_enrol_is_the_one_that_dkms_signs_with(distribution: dict[str, str], key: str) -> None:
    error = refusal("vm", {**distribution, "secure_boot": True, "cards": (RTX_3090,)}, driver="580")
    assert f"mokutil --import {key}`" in error.next


# -- systems ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("distribution", "version", "target"),
    [("ubuntu", "20.04", "vm"), ("debian", "11", "vm"), ("fedora", "43", "vm"), ("ubuntu", "24.04", "host")],
)
def test_another_system_is_refused(distribution: str, version: str, target: Target) -> None:
    error = refusal(target, {"distribution": distribution, "version": version}, driver="580")
    assert f"{distribution} {version}" in error.found and "Debian 13" in error.wanted


def test_another_architecture_is_refused() -> None:
    assert "aarch64" in refusal("vm", UBUNTU | {"architecture": "aarch64"}, driver="580").found


@pytest.mark.parametrize(
    ("row", "branch"), [(row, branch) for row in load().packaging.distributions for branch in (580, 590, 595, 615)]
)
def test_every_distribution_and_target_has_a_plan(row: Any, branch: int) -> None:
    for target in row.targets:
        system = {"distribution": row.id, "version": row.version, "cards": (RTX_3090,), "host_driver": ""}
        kernel = {"ubuntu": "6.8.0-86-generic", "debian": "6.12.48+deb13-amd64"}[row.id]
        if target == "lxc":
            version = {580: "580.105.08", 590: "590.48.01"}.get(branch, f"{branch}.48.01")
            system |= {"host_driver": version, "cards": None}
        plan = planned(target, system | {"kernels": (kernel,), "running": kernel}, driver=str(branch))
        if (row.id, row.version, branch) in INSTALLER_ALONE:
            assert plan.source == "run" and plan.run and plan.run.sha256 and plan.repositories == ()
            continue
        assert plan.packages and all(str(branch) in package for package in plan.packages)
        assert plan.repositories[0].line.count(row.path) == 1


def test_a_plan_takes_the_distribution() -> None:
    with pytest.raises(HomelabError, match="os-release"):
        planned("vm", {"cards": (RTX_5090,)}, driver="580")


def test_all_that_stands_against_a_stack_is_said_at_once() -> None:
    with pytest.raises(HomelabError) as error:
        planned("host", PROXMOX | {"cards": (RTX_5090,), "secure_boot": True}, driver="550", cuda="13.0")
    assert [f"{number}.\n" in str(error.value) for number in (1, 2, 3, 4)] == [True, True, True, False]


# -- packages and the installer --------------------------------------------------------------------------------
def test_what_the_repositories_offer_decides_the_version() -> None:
    names = ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580")
    offered = {name: ("580.105.08-1ubuntu1", "580.159.03-0ubuntu0.24.04.1", "580.159.03-1ubuntu1") for name in names}
    plan = planned("vm", UBUNTU | {"offered": offered}, driver="580")
    assert plan.version == "580.159.03"
    assert plan.packages[0] == "nvidia-dkms-580-open=580.159.03-1ubuntu1"


def test_packages_that_are_not_offered() -> None:
    versions = ("580.159.03-1ubuntu1",)
    offered = dict.fromkeys(("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580"), versions)
    with pytest.raises(HomelabError) as error:
        planned("vm", UBUNTU | {"offered": offered}, driver="580.105.08", source="packages")
    assert "offered: 580.159.03" in str(error.value) and "nvidia.source: run" in str(error.value)
    plan = planned("vm", UBUNTU | {"offered": offered}, driver="580.105.08")
    assert plan.source == "run" and plan.run and plan.run.version == "580.105.08"


def test_names_are_looked_up_where_the_repositories_were_read() -> None:
    suffixed = dict.fromkeys(("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580"), ())
    plain = dict.fromkeys(("nvidia-dkms-open", "libnvidia-compute", "nvidia-utils"), ("580.178.04-1ubuntu1",))
    plan = planned("vm", UBUNTU | {"offered": suffixed | plain}, driver="580")
    assert plan.packages[0] == "nvidia-dkms-open=580.178.04-1ubuntu1" and plan.version == "580.178.04"


def test_modules_and_libraries_are_of_one_version() -> None:
    older, newer = "580.159.03-1ubuntu1", "580.178.04-1ubuntu1"
    offered = {"nvidia-dkms-580-open": (older,), "libnvidia-compute-580": (newer, older)}
    offered |= {"nvidia-utils-580": (newer, older)}
    plan = planned("vm", UBUNTU | {"offered": offered}, driver="580")
    assert plan.version == "580.159.03" and all(name.endswith(f"={older}") for name in plan.packages)
    apart = offered | {"nvidia-utils-580": (newer,)}
    with pytest.raises(HomelabError, match="one version of all of them"):
        planned("vm", UBUNTU | {"offered": apart}, driver="580", source="packages")


def test_what_is_asked_for_decides_the_plan() -> None:
    wanted = request("vm", UBUNTU, driver="580", cuda="12.8", containerToolkit="docker")
    asked = packages_to_ask_for(wanted)
    assert {"nvidia-dkms-580-open", "nvidia-dkms-open", "cuda-toolkit-12-8", "libnvidia-container1"} <= set(asked)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("missing", ["cuda-toolkit-12-8", "nvidia-container-toolkit"])
def test_cuda_or_the_toolkit_is_not_offered(missing: str) -> None:
    with pytest.raises(HomelabError, match=missing):
        planned("vm", UBUNTU | {"offered": {missing: ()}}, driver="580", cuda="12.8", containerToolkit="docker")


def test_the_installer_of_a_branch_is_its_newest_known_release() -> None:
    plan = planned("vm", UBUNTU, driver="580", source="run")
    assert plan.run and plan.run.version == "580.178.04" and plan.run.arguments[-1] == "--kernel-module-type=open"
    assert "linux-headers-6.8.0-86-generic" in plan.run.prerequisites
    assert plan.repositories == () and plan.preferences is None


def test_an_installer_before_555_takes_its_flavour_otherwise() -> None:
    system = UBUNTU | {"cards": (RTX_3090,)}
    plan = planned("vm", system, driver="550.163.01", source="run")
    assert plan.run and plan.run.arguments[-1] == "-m=kernel-open"


def test_a_branch_of_which_no_release_is_known_has_no_installer() -> None:
    with pytest.raises(HomelabError, match="exact version"):
        planned("vm", UBUNTU, driver="625", source="run")


def test_mirrors_stand_for_nvidias_servers() -> None:
    mirror = {"cuda": "https://m.lan/cuda", "containerToolkit": "https://m.lan/ctk", "run": "https://m.lan/run"}
    plan = planned("vm", UBUNTU, driver="580", containerToolkit="docker", mirror=mirror)
    assert "https://m.lan/cuda/ubuntu2404/x86_64 /" in plan.repositories[0].line
    assert plan.repositories[1].key_url == "https://m.lan/ctk/gpgkey"
    assert ".asc,C95B321B61E88C1809C4F759DDCAE044F796ECB0] " in plan.repositories[1].line
    assert plan.preferences and "Pin: origin m.lan" in plan.preferences.content
    run = planned("vm", UBUNTU, driver="580", source="run", mirror=mirror).run
    assert run and run.url.startswith("https://m.lan/run/Linux-x86_64/")
    there = planned("vm", UBUNTU, driver="580", source="run").run
    assert there and run.sha256 == there.sha256 and run.checksum_url == there.checksum_url


def test_an_installer_without_checksum_is_refused_until_the_settings_have_it() -> None:
    with pytest.raises(HomelabError) as error:
        planned("vm", UBUNTU, driver="570.211.01", source="run")
    message = str(error.value)
    assert (
        "the SHA-256 of NVIDIA's installer 570.211.01" in message
        and "NVIDIA-Linux-x86_64-570.211.01.run.sha256sum" in message
    )
    assert 'nvidia.runSha256: {"570.211.01": "..."}' in message
    known = {"570.211.01": "ab" * 32}
    run = planned("vm", UBUNTU, driver="570.211.01", source="run", runSha256=known).run
    assert run and run.sha256 == "ab" * 32


def test_the_settings_checksum_comes_before_the_known_one() -> None:
    run = planned("vm", UBUNTU, driver="580.105.08", source="run", runSha256={"580.105.08": "cd" * 32}).run
    assert run and run.sha256 == "cd" * 32


def test_an_unknown_checksum_does_not_stand_in_the_way_of_packages() -> None:
    plan = planned("vm", UBUNTU, driver="570.211.01")
    assert plan.source == "either" and plan.run and plan.run.sha256 == ""


# -- containers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("driver", ["595", "580.105.09", "580.105", "58"])
def test_a_container_can_not_have_another_version_than_its_host(driver: str) -> None:
    settings = Nvidia().model_copy(update={"driver": driver})
    errors = refusals(Request("lxc", settings, SystemFacts(**CONTAINER), "ct"))
    assert [error.wanted for error in errors] == ["ct: the host's driver, 580.105.08"]


@pytest.mark.parametrize("driver", ["580", "580.105.08"])
def test_a_container_may_say_what_its_host_has(driver: str) -> None:
    assert planned("lxc", CONTAINER, driver=driver).version == "580.105.08"


def test_a_container_on_a_host_without_a_driver() -> None:
    """Which has no node of a card either."""
    assert "graphics cards: none" in refusal("lxc", CONTAINER | {"host_driver": "", "cards": ()}).found


def test_a_container_whose_host_was_not_read() -> None:
    with pytest.raises(HomelabError, match="the host wasn't read"):
        planned("lxc", CONTAINER | {"host_driver": None})


# -- CUDA and runtimes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("driver", "cuda", "least"),
    [
        ("550", "12.8", "570.26"),
        ("575", "13.0", "580.65.06"),
        ("580", "13.1", "590.44.01"),
        ("535", "12.4", "550.54.14"),
        ("610", "13.4", "615.71.09"),
        ("595", "13.5", "620.70.06"),
        ("595", "13.9", "620.70.06"),
    ],
)
def test_cuda_needs_a_newer_driver(driver: str, cuda: str, least: str) -> None:
    error = refusal("vm", {"cards": (RTX_3090,)}, driver=driver, cuda=cuda)
    assert f"{least} or later" in error.wanted and "unsupported toolchain" in error.why
    assert "set nvidia.driver" in error.next


@pytest.mark.parametrize(
    ("card", "cuda", "branch"),
    [(RTX_3090, "12.8", 580), (RTX_3090, "13.1", 595), (RTX_5090, "13.5", 620), (RTX_3090, "13.9", 620)],
)
def test_without_a_driver_in_the_settings_it_is_one_that_cuda_takes(card: str, cuda: str, branch: int) -> None:
    wanted = request("vm", {"cards": (card,)}, cuda=cuda)
    assert refusals(wanted) == [] and wanted.driver and wanted.driver.branch == branch


def test_a_card_for_which_no_driver_runs_that_cuda_is_told_what_does() -> None:
    errors = refusals(request("vm", {"cards": (GTX_1080_TI,)}, cuda="13.1"))
    assert {"set nvidia.cuda" in error.next for error in errors} == {True}


@pytest.mark.parametrize(
    ("driver", "cuda"), [("580", "12.8"), ("580", "13.0.2"), ("570.26", "12.8"), ("595", "13.2"), ("610", "12.4")]
)
def test_cuda_with_a_driver_that_is_new_enough(driver: str, cuda: str) -> None:
    assert refusals(request("vm", {"cards": (RTX_3090,)}, driver=driver, cuda=cuda)) == []


def test_a_driver_of_the_same_major_family_can_be_allowed() -> None:
    system = UBUNTU | {"cards": (RTX_3090,)}
    assert "allowMinorVersionCompatibility" in refusal("vm", system, driver="580", cuda="13.1").next
    plan = planned("vm", system, driver="580", cuda="13.1", allowMinorVersionCompatibility=True)
    assert any("without PTX" in note for note in plan.notes)
    below = refusal("vm", system, driver="570", cuda="13.0", allowMinorVersionCompatibility=True)
    assert "allowMinorVersionCompatibility" not in below.next


def test_the_way_out_of_an_old_driver_fits_card_and_cuda() -> None:
    assert 'set nvidia.driver: "595"' in refusal("vm", {"cards": (RTX_5090,)}, driver="580", cuda="13.2").next


def test_in_a_container_it_is_the_hosts_driver_that_is_too_old() -> None:
    assert "for the host" in refusal("lxc", CONTAINER, cuda="13.2").next


@pytest.mark.parametrize(
    ("card", "cuda", "wanted"),
    [(RTX_5090, "12.6", "CUDA 12.8 or later"), (GTX_1080_TI, "13.0", "CUDA 12.9 or earlier")],
)
def test_a_cuda_that_can_not_build_for_the_card(card: str, cuda: str, wanted: str) -> None:
    assert wanted in refusal("vm", {"cards": (card,)}, driver="580", cuda=cuda).wanted


def test_a_cuda_that_does_not_exist_and_one_newer_than_the_data() -> None:
    assert "12.8" in refusal("vm", {}, driver="580", cuda="12.7").wanted
    plan = planned("vm", UBUNTU, driver="620", cuda="13.9")
    assert any("CUDA 13.9 is newer than this program's data" in note for note in plan.notes)
    assert plan.cuda and plan.cuda.packages == ("cuda-toolkit-13-9",)


def test_an_update_of_cuda_is_installed_as_that_update() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8.1")
    assert plan.cuda and plan.cuda.packages == ("cuda-toolkit-12-8=12.8.1-*",)


def test_cuda_beside_the_installer_still_takes_the_repository() -> None:
    plan = planned("vm", UBUNTU, driver="580", source="run", cuda="12.8")
    assert [one.keyring for one in plan.repositories] == ["/usr/share/keyrings/homelab-cuda.asc"]
    assert plan.preferences is None


def test_a_runtime_is_never_installed_unasked() -> None:
    system = UBUNTU | {"runtimes": frozenset({"podman"})}
    assert "nvidia.docker: install" in refusal("vm", system, driver="580", containerToolkit="docker").next
    toolkit = planned("vm", system, driver="580", containerToolkit="docker", docker="install").toolkit
    assert toolkit and toolkit.package == "docker.io"
    there = planned("vm", system, driver="580", containerToolkit="podman", docker="install").toolkit
    assert there and there.cdi == "/etc/cdi/nvidia.yaml"


WITHOUT_GROUPS = ("--feature-flag", "no-additional-gids-for-device-nodes")


@pytest.mark.parametrize(
    ("distribution", "version", "toolkit", "runtime", "options"),
    [
        ("ubuntu", "24.04", "1.20.0", "podman", WITHOUT_GROUPS),
        ("debian", "12", "1.19.1", "podman", WITHOUT_GROUPS),
        ("ubuntu", "24.04", "1.19.0", "podman", ()),  # writes none yet, and knows no such option
        ("ubuntu", "24.04", "1.20.0", "docker", ()),
        ("debian", "13", "1.20.0", "podman", ()),
        ("ubuntu", "26.04", "1.20.0", "podman", ()),
    ],
)
def test_an_older_podman_gets_a_specification_without_groups_and_a_note(
    distribution: str, version: str, toolkit: str, runtime: str, options: tuple[str, ...]
) -> None:
    names = load().packaging.toolkit.packages
    system = UBUNTU | {"distribution": distribution, "version": version, "kernels": None, "running": None}
    system |= {"offered": dict.fromkeys(names, (f"{toolkit}-1",)), "runtimes": frozenset({runtime})}
    plan = planned("vm", system, driver="580", containerToolkit=runtime)
    assert plan.toolkit and plan.toolkit.cdi_options == options
    assert any("additionalGids" in note and "podman" in note for note in plan.notes) is bool(options)


# -- all together ----------------------------------------------------------------------------------------------
def test_every_branch_and_generation_is_planned_or_refused_with_a_step() -> None:
    data = load()
    for branch, generation in itertools.product(data.branches.values(), data.gpus.generations):
        card = f"10de:{generation.ranges[-1][0]:04x}"
        errors = refusals(request("vm", UBUNTU | {"cards": (card,)}, driver=str(branch.branch)))
        new_enough = branch.newest is None or branch.newest >= generation.least
        flavours = set(generation.flavours) & set(branch.flavours)
        fits = bool(flavours) and new_enough and not generation.outlived_by(branch.branch)
        assert bool(errors) != fits, (branch.branch, generation.name)
        assert all(error.next and error.why and error.found and error.wanted for error in errors)
