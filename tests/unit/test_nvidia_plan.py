"""homelab/nvidia/checks.py and homelab/nvidia/plan.py: what can't work is refused with its reason, the rest becomes the ways to a driver, and what is
asked of apt."""

from __future__ import annotations

import datetime
import fnmatch
import itertools
from dataclasses import replace
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.nvidia.checks import fitting_cudas, fitting_drivers
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.plan import beside_cuda, cdi, coming, described, notes, refused, tries, wanted
from homelab.nvidia.request import Request
from homelab.nvidia.settings import Nvidia
from remote_scripts.both.nvidia_packages import Said, Try, Wanted
from remote_scripts.both.software import Installer
from remote_scripts.nvidia.driver import FAMILY
from tests.rows import rows

TODAY = datetime.date(2026, 11, 20)
RTX_5090, RTX_3090, GTX_1080_TI, V100, GTX_1050M = "10de:2b85", "10de:2204", "10de:1b06", "10de:1db4", "10de:128b"


def system_of(distribution: str, version: str, *kernels: str, card: str) -> dict[str, Any]:
    """A system of which the last kernel runs, without a driver."""
    found: dict[str, Any] = {"distribution": distribution, "version": version, "kernels": kernels}
    return found | {"running": kernels[-1], "secure_boot": False, "cards": (card,), "loaded": "", "nouveau": False}


UBUNTU = system_of("ubuntu", "24.04", "6.8.0-86-generic", card=RTX_5090)
PROXMOX = system_of("debian", "13", "6.14.11-9-pve", "6.17.13-2-pve", card=RTX_3090)
CONTAINER: dict[str, Any] = {"distribution": "ubuntu", "version": "24.04", "host_driver": "580.105.08"}


def request(target: Target, system: dict[str, Any] | None = None, **settings: Any) -> Request:
    return replace(Request.of(target, Nvidia.model_validate(settings), "vms.gaming", **(system or {})), today=TODAY)


def planned(target: Target, system: dict[str, Any], **settings: Any) -> Wanted:
    """What a stack that nothing stands against asks of apt."""
    asked = request(target, system, **settings)
    assert refused(asked) == []
    return wanted(asked)


def refusal(
    target: Target, system: dict[str, Any] | None = None, said: Said | None = None, **settings: Any
) -> HomelabError:
    (error,) = refused(replace(request(target, system, **settings), said=said))
    assert error.wanted.startswith("vms.gaming: ") and error.found and error.why and error.next
    return error


def installer(asked: Wanted) -> Installer:
    """That of the first way by one, with the modules that come."""
    return next(way.run for way in asked.tries if way.run)


def ways(asked: Wanted) -> list[str]:
    """Driver and kind of each way, in their order, once each."""
    return [*dict.fromkeys(f"{way.driver} {'run' if way.run else 'packages'}" for way in asked.tries)]


def all_notes(target: Target, system: dict[str, Any], said: Said | None = None, **settings: Any) -> str:
    return "\n".join(notes(replace(request(target, system, **settings), said=said)))


# -- the examples --------------------------------------------------------------------------------------
def test_an_rtx_5090_in_an_ubuntu_vm() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8", containerToolkit="docker")
    assert plan.tries[0] == Try(
        driver="580",
        flavour="open",
        packages=(
            "nvidia-dkms-580-open",
            "libnvidia-compute-580",
            "nvidia-utils-580",
            "libnvidia-decode-580",
            "libnvidia-encode-580",
        ),
        capabilities=("compute", "video"),
    )
    assert plan.headers == ("linux-headers-6.8.0-86-generic", "linux-headers-generic")
    assert plan.beside[:3] == ("cuda-toolkit-12-8", "build-essential", "nvidia-container-toolkit")
    assert (plan.cuda, plan.nvcc) == ("12.8", "/usr/local/cuda-12.8/bin/nvcc")
    assert (plan.recommends, plan.libraries) == (True, ())
    assert [one.list_file.rpartition("/")[2] for one in plan.repositories] == [
        "homelab-cuda.list",
        "homelab-nvidia-container-toolkit.list",
    ]
    key = "[signed-by=/usr/share/keyrings/homelab-cuda.asc,EB693B3035CD5710E231E123A4B469963BF863CC]"
    url = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64"
    assert plan.repositories[0].line == f"deb {key} {url} /\n"
    assert plan.repositories[1].key_url == "https://nvidia.github.io/libnvidia-container/gpgkey"
    assert all_notes("vm", UBUNTU, driver="580", cuda="12.8", containerToolkit="docker") == ""


def test_a_proxmox_host_gets_headers_for_every_kernel() -> None:
    plan = planned("host", PROXMOX, driver="595")
    names = ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libcuda1", "libnvcuvid1", "libnvidia-encode1")
    assert plan.tries[0].packages == names
    # The last one is for updates of an opt-in kernel, which the default's isn't for.
    kernels = ("6.14.11-9-pve", "6.17.13-2-pve")
    headers = (*(f"proxmox-headers-{kernel}" for kernel in kernels), "proxmox-default-headers", "proxmox-headers-6.17")
    assert plan.headers == headers
    assert "--dkms" in installer(plan).arguments and "dkms" in plan.tries[-1].packages
    assert plan.repositories[0].key_url.endswith("/debian13/x86_64/8793F200.pub")


def test_a_container_gets_exactly_the_hosts_version_and_no_modules() -> None:
    plan = planned("lxc", CONTAINER, containerToolkit="docker", cuda="12.8")
    assert {(way.driver, way.flavour) for way in plan.tries} == {("580.105.08", None)}
    assert plan.tries[0].packages[:2] == ("libnvidia-compute-580", "nvidia-utils-580")
    assert not plan.recommends and plan.headers == ()
    assert cdi(request("lxc", CONTAINER, containerToolkit="docker")) == "/etc/cdi/nvidia.yaml"


def test_the_last_way_of_a_container_is_nvidias_installer_of_that_version() -> None:
    plan = planned("lxc", CONTAINER)
    run = installer(plan)
    assert run.url == "https://download.nvidia.com/XFree86/Linux-x86_64/580.105.08/NVIDIA-Linux-x86_64-580.105.08.run"
    assert run.sha256 == "d9c6e8188672f3eb74dd04cfa69dd58479fa1d0162c8c28c8d17625763293475"
    assert "--no-kernel-module" in run.arguments and plan.tries[-1].packages == ("kmod",)
    assert not any("kernel-module-type" in argument for argument in run.arguments)


# -- in which order the ways are tried -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("card", "expected"),
    [
        # What apt can bring in comes before the installer, whose branch is the older one.
        (RTX_3090, ["580 packages", "595 packages", "620 packages", "580 run", "595 run"]),
        (GTX_1080_TI, ["580 packages", "580 run"]),
        (GTX_1050M, ["470 packages", "470 run"]),
    ],
)
def test_packages_of_any_recommended_branch_come_before_the_installer(card: str, expected: list[str]) -> None:
    older = {"cards": (card,), "running": "6.8.12-5-pve"}
    assert ways(planned("host", PROXMOX | older)) == expected


def test_a_driver_that_is_named_is_no_other() -> None:
    assert ways(planned("host", PROXMOX, driver="580")) == ["580 packages", "580 run"]
    assert ways(planned("host", PROXMOX, driver="580", source="run")) == ["580 run"]
    assert ways(planned("host", PROXMOX, driver="580", source="packages")) == ["580 packages"]


def test_a_branchs_own_names_are_tried_first() -> None:
    firsts = [planned("vm", UBUNTU, driver=driver, source="packages").tries for driver in ("580", "595")]
    assert [[way.packages[0] for way in tried[:2]] for tried in firsts] == [
        ["nvidia-dkms-580-open", "nvidia-dkms-open"],
        ["nvidia-dkms-open", "nvidia-dkms-595-open"],
    ]


# -- beside CUDA -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cuda", "major"), [("12.8", 12), ("12.8.1", 12), ("13.0", 13)])
def test_cudnn_and_nccl_are_those_of_the_major_release_of_cuda(cuda: str, major: int) -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda=cuda, cudnn="9", nccl=True)
    assert plan.beside[2:] == (
        f"libcudnn9-cuda-{major}",
        f"libcudnn9-dev-cuda-{major}",
        f"libnccl2=*+cuda{major}.*",
        f"libnccl-dev=*+cuda{major}.*",
    )
    assert [row.soname for row in beside_cuda(request("vm", UBUNTU, cuda=cuda, cudnn="9", nccl=True))] == [
        "libcudnn.so.9",
        "libnccl.so.2",
    ]


def test_cuda_alone_brings_neither() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8")
    assert plan.beside == ("cuda-toolkit-12-8", "build-essential")
    assert beside_cuda(request("vm", UBUNTU, cuda="12.8")) == ()


@pytest.mark.parametrize("settings", [{"cudnn": "9"}, {"nccl": True}])
def test_they_are_not_had_without_cuda(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected nvidia.cuda"):
        request("vm", UBUNTU, driver="580", **settings)


# -- what the driver is for ------------------------------------------------------------------------------------
BASE = ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580")
VIDEO = ("libnvidia-decode-580", "libnvidia-encode-580")
GRAPHICS = ("libnvidia-gl-580", "libnvidia-fbc1-580")


@pytest.mark.parametrize(
    ("named", "packages"),
    [(["compute"], BASE), (["video"], BASE + VIDEO), (["compute", "graphics"], BASE + GRAPHICS),
     (["graphics", "compute", "video"], BASE + VIDEO + GRAPHICS)],
)  # fmt: skip
def test_the_packages_are_those_of_what_the_driver_is_for(named: list[str], packages: tuple[str, ...]) -> None:
    plan = planned("vm", UBUNTU, driver="580", capabilities=named)
    of_packages = [way for way in plan.tries if not way.run]
    assert of_packages[0].packages == packages and {*of_packages[0].capabilities} == {"compute", *named}
    # What is named is demanded, also of a driver that is there, and of each way.
    assert {way.capabilities for way in plan.tries} == {of_packages[0].capabilities}
    assert plan.libraries == load().libraries(named)


def test_video_comes_where_it_is_offered_and_nobody_has_said_what_the_driver_is_for() -> None:
    plan = planned("vm", UBUNTU, driver="580", source="packages")
    assert [way.packages for way in plan.tries[::2]] == [BASE + VIDEO, BASE]
    without = Said(chosen=2, version="580.178.04")
    assert "don't offer the packages of video" in all_notes("vm", UBUNTU, without, driver="580")
    assert "don't offer" not in all_notes("vm", UBUNTU, Said(chosen=0, version="580.178.04"), driver="580")


@rows(("distribution", "version"), [(row.id, row.version) for row in load().distributions])
@rows("branch", [580, 595])
def test_every_system_has_a_way_to_video_and_graphics(distribution: str, version: str, branch: int) -> None:
    system = {"distribution": distribution, "version": version, "cards": (RTX_3090,), "running": "6.8.0-1-generic"}
    plan = planned("vm", system, driver=str(branch), capabilities=["compute", "video", "graphics"])
    names = " ".join(plan.tries[0].packages)
    assert "encode" in names and "fbc1" in names and ("libnvcuvid1" in names or "decode" in names)
    assert "--no-opengl-files" not in installer(plan).arguments and "libegl1" in plan.tries[-1].packages
    assert all(len(way.capabilities) == 3 for way in plan.tries)


def test_the_installer_leaves_graphics_out_where_nobody_asked_for_them() -> None:
    plan = planned("vm", UBUNTU, driver="580.105.08", source="run")
    assert "--no-opengl-files" in installer(plan).arguments and "libegl1" not in plan.tries[-1].packages
    assert plan.tries[-1].capabilities == ("compute", "video"), "it brings NVENC and NVDEC in every case"


def test_graphics_in_a_container_take_more_than_libraries_which_is_said() -> None:
    assert "nvidia-drm" in all_notes("lxc", CONTAINER, capabilities=["compute", "graphics"])
    assert "nvidia-drm" not in all_notes("lxc", CONTAINER, capabilities=["compute"])
    assert "nvidia-drm" not in all_notes("vm", CONTAINER, capabilities=["compute", "graphics"])


# -- cards -----------------------------------------------------------------------------------------------------
@rows("driver", ["535", "550", "560", "565", "565.77"])
def test_an_rtx_5090_needs_570_from_settings_alone(driver: str) -> None:
    error = refusal("vm", {"cards": (RTX_5090,)}, driver=driver)
    assert "10de:2b85 (Blackwell): branch 570 or later" in error.wanted
    assert driver in error.found
    assert error.next == 'set nvidia.driver: "580"'


@rows("driver", ["570", "570.86.16", "580", "595", "610.57.04", "615", "620"])
def test_an_rtx_5090_takes_570_and_later(driver: str) -> None:
    assert refused(request("vm", {"cards": (RTX_5090,)}, driver=driver)) == []


@rows(("card", "name"), [(GTX_1080_TI, "Pascal"), (V100, "Volta"), ("10de:13c2", "Maxwell")])
@rows("driver", ["590", "595.58.03", "610"])
def test_branches_after_580_have_dropped_older_cards(card: str, name: str, driver: str) -> None:
    error = refusal("vm", {"cards": (card,)}, driver=driver)
    assert f"({name}): branch 580 or earlier" in error.wanted
    assert error.next == 'set nvidia.driver: "580"'


def test_a_fermi_card_has_no_driver_here() -> None:
    assert "use other cards" in refusal("vm", {"cards": ("10de:06c0",)}, driver="470").next


@rows(
    ("target", "running", "is_refused"),
    [
        ("host", "6.17.2-1-pve", True),
        ("host", "6.8.12-5-pve", False),
        ("host", None, False),
        ("vm", "6.17.2-1-pve", False),  # Ubuntu's own packages take newer kernels
    ],
)
def test_a_branch_that_builds_for_none_of_the_hosts_kernels_is_refused(
    target: Target, running: str | None, is_refused: bool
) -> None:
    errors = refused(request(target, PROXMOX | {"cards": (GTX_1050M,), "running": running}))
    assert [error.found.partition(":")[0] for error in errors] == ["branch 470, for 10de"] * is_refused
    assert all("give the card to a VM" in error.next for error in errors)


QUADRO_K420 = "10de:0ff3"


def test_older_cards_get_the_proprietary_modules() -> None:
    way = planned("vm", UBUNTU | {"cards": (GTX_1080_TI,)}, driver="580").tries[0]
    assert way.flavour == "proprietary" and way.packages[0] == "nvidia-dkms-580"


@pytest.mark.parametrize("target", ["host", "vm"])
def test_blackwell_and_pascal_can_not_share_a_kernel(target: Target) -> None:
    error = refusal(target, {"cards": (RTX_5090, GTX_1080_TI)}, driver="580")
    assert "works with the open ones alone" in error.found and "with the proprietary ones alone" in error.found
    assert "to different systems" in error.next


def test_pascal_and_ampere_share_the_proprietary_modules() -> None:
    plan = planned("host", PROXMOX | {"cards": (RTX_3090, GTX_1080_TI)})
    assert {way.flavour for way in plan.tries} == {"proprietary"} and ways(plan)[0] == "580 packages"


@pytest.mark.parametrize(
    ("card", "flavour", "driver", "found"),
    [
        (RTX_5090, "proprietary", "580", "10de:2b85 (Blackwell) works with the open ones alone"),
        (GTX_1080_TI, "open", "580", "works with the proprietary ones alone"),
        (RTX_3090, "proprietary", "615", "has the open ones; nvidia.flavour is proprietary"),
        (RTX_3090, "open", "470", "has the proprietary ones; nvidia.flavour is open"),
    ],
)
def test_a_flavour_that_can_not_be(card: str, flavour: str, driver: str, found: str) -> None:
    error = refusal("vm", {"cards": (card,)}, driver=driver, flavour=flavour)
    assert found in error.found and "leave nvidia.flavour at auto" in error.next


def test_a_flavour_that_can_be_is_taken() -> None:
    plan = planned("vm", UBUNTU | {"cards": (RTX_3090,)}, flavour="proprietary")
    assert {way.flavour for way in plan.tries} == {"proprietary"}
    assert ways(plan) == ["580 packages", "595 packages", "580 run", "595 run"], "620 has the open ones alone"


def test_a_driver_that_is_there_may_have_the_modules_of_either_flavour_and_one_that_comes_has_the_open_ones() -> None:
    tries = planned("vm", UBUNTU | {"cards": (RTX_3090,)}, driver="580").tries
    in_order = [key for key, _ in itertools.groupby((way.run is not None, way.flavour) for way in tries)]
    assert in_order == [(False, "open"), (False, "proprietary"), (True, "open"), (True, "proprietary")]


def test_branches_from_615_on_have_the_open_modules_alone() -> None:
    way = planned("vm", UBUNTU | {"cards": (RTX_3090,)}, driver="615").tries[0]
    assert way.flavour == "open" and way.packages[0] == "nvidia-dkms-open"


def test_an_unknown_card_counts_as_a_new_one_with_a_note() -> None:
    system = UBUNTU | {"cards": ("10de:3f01",)}
    assert {way.flavour for way in planned("vm", system).tries} == {"open"}
    assert "10de:3f01 (unknown): taken for a card that is newer" in all_notes("vm", system)


def test_an_unknown_card_needs_the_open_modules() -> None:
    assert "10de:3f01" in refusal("vm", {"cards": ("10de:3f01",)}, driver="580", flavour="proprietary").found
    assert "10de:3f01" in refusal("host", {"cards": ("10de:3f01", GTX_1080_TI)}, driver="580").found


def test_a_systems_cards_are_nvidias() -> None:
    assert "1002:744c" in refusal("vm", {"cards": ("1002:744c",)}, driver="580").found
    assert refused(request("vm", {"cards": ("1002:13c0", RTX_5090)}, driver="580")) == []


def test_ids_may_be_written_in_capitals() -> None:
    assert "10de:2b85 (Blackwell)" in refusal("vm", {"cards": ("10DE:2B85",)}, driver="565").wanted


# -- the driver ------------------------------------------------------------------------------------------------
@rows(
    ("cards", "branch"),
    [((), "580"), ((RTX_5090,), "580"), ((GTX_1080_TI,), "580"), ((GTX_1050M,), "470"), ((GTX_1050M, V100), "470")],
)
def test_without_a_driver_in_the_settings_the_first_that_knows_the_cards(cards: tuple[str, ...], branch: str) -> None:
    assert str(request("vm", {"cards": cards}).driver) == branch


def test_a_branch_that_is_none_is_refused() -> None:
    error = refusal("vm", driver="581")
    assert "Windows" in error.why and "580" in error.wanted


def test_a_branch_newer_than_the_data_is_accepted() -> None:
    assert planned("vm", UBUNTU, driver="640.10.02").tries[0].flavour == "open"


def test_a_branch_whose_life_is_over_is_said() -> None:
    assert "branch 570 has reached its end of life (2026-02)" in all_notes("vm", UBUNTU, driver="570")
    assert "end of life" not in all_notes("vm", UBUNTU, driver="580")
    assert "580 is maintained" in all_notes("vm", UBUNTU | {"cards": (RTX_3090,)}, driver="570")
    kepler = all_notes("vm", UBUNTU | {"cards": (QUADRO_K420,)})
    assert "branch 470 has reached" in kepler and "none that knows the cards is maintained" in kepler
    # Also of the version that apt would bring, and of a host's that a container follows.
    assert "branch 590 has reached" in all_notes("vm", UBUNTU, Said(chosen=0, version="590.48.01"))
    assert "branch 570 has reached" in all_notes("lxc", CONTAINER | {"host_driver": "570.211.01"})


def test_an_exact_version_is_pinned_exactly_and_a_branch_as_a_branch() -> None:
    """Each way says to which version apt pins what is of one; the names have none."""
    exact, branch = (planned("vm", UBUNTU, driver=driver) for driver in ("580.105.08", "580"))
    assert {way.driver for way in exact.tries} == {"580.105.08"} and {way.driver for way in branch.tries} == {"580"}
    assert exact.pinned == branch.pinned and not any("=" in name for name in exact.tries[0].packages)
    assert installer(exact).version == "580.105.08" and installer(branch).version == "580.178.04"


def test_unattended_upgrades_leave_the_driver_alone() -> None:
    (file,) = planned("vm", UBUNTU, driver="580").files
    assert file.path == "/etc/apt/apt.conf.d/52homelab-nvidia"
    assert file.content.startswith("Unattended-Upgrade::Package-Blacklist {\n") and '  "libnvidia-";\n' in file.content
    assert planned("vm", UBUNTU, driver="580", source="run").files == ()


# Debian's names: each depends on others of its very version (nvidia-graphics-drivers, debian/control).
@rows("name", ["libgl1-nvidia-glvnd-glx", "libglx-nvidia0", "libgles-nvidia2", "libegl-nvidia0", "nvidia-cuda-mps"])
def test_what_is_of_one_version_is_pinned_left_alone_and_replaced_together(name: str) -> None:
    plan = planned("vm", UBUNTU, driver="580")
    left_alone = [line.split('"')[1] for line in plan.files[0].content.splitlines()[1:-1]]
    assert any(fnmatch.fnmatchcase(name, pattern) for pattern in plan.pinned)
    assert any(map(name.startswith, left_alone)) and FAMILY.search(name)


@rows(
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
    headers = planned("vm", UBUNTU | changes, driver="580").headers
    assert headers[-1] == follows and headers[0] == f"linux-headers-{running}"


def test_the_container_toolkit_comes_from_its_own_repository() -> None:
    *_, pin = planned("vm", UBUNTU, driver="580", containerToolkit="docker").files
    assert pin.path == "/etc/apt/preferences.d/homelab-nvidia-container-toolkit"
    assert "nvidia-container-toolkit-base" in pin.content and "Pin: origin nvidia.github.io\n" in pin.content


# -- what apt says ---------------------------------------------------------------------------------------------
def test_a_driver_that_no_way_leads_to_is_refused_with_what_stands_against_it() -> None:
    said = Said(chosen=None, against=("580: apt has\nno such version", "580: no room"), offered=("595.91.07",))
    error = refusal("host", PROXMOX, said, driver="580", source="packages")
    assert error.wanted == "vms.gaming: branch 580"
    assert error.found.split("\n        ") == ["580: apt has no such version", "580: no room", "offered: 595.91.07"]
    assert "leave nvidia.source out" in error.next and "nvidia.source: run" in error.next
    error = refusal("lxc", CONTAINER, said)
    assert "580.105.08" in error.wanted and error.next == "set nvidia.driver of the host to one that is offered"
    named = Said(chosen=None, against=("580 (a b): E: Unable to locate package a\nE: Unable to locate package b",))
    assert refusal("lxc", CONTAINER, named).found == "580 (a b): E: Unable to locate package a, b"
    error = refusal("host", PROXMOX, said, cuda="13.0")
    assert error.wanted == "vms.gaming: branch 580 or branch 595 or branch 620, and what comes beside it"


def test_an_unknown_checksum_does_not_stand_in_the_way_of_packages() -> None:
    assert ways(planned("vm", UBUNTU, driver="570.211.01")) == ["570.211.01 packages"]
    error = refusal("vm", UBUNTU, Said(chosen=None, against=("570.211.01: no",)), driver="570.211.01")
    assert "one that is offered; or read the installer's SHA-256 at https://" in error.next
    assert 'runSha256: {"570.211.01"' in error.next


@rows(
    ("absent", "step"),
    [
        (
            "cuda-toolkit-12-8 isn't offered; there is cuda-toolkit-12-9, cuda-toolkit-13-0, cuda-toolkit-13-1",
            'set nvidia.cuda: "13.0", or an older one that fits (12.9)',
        ),
        ("cuda-toolkit-12-8=12.8.1-* isn't offered; there is cuda-toolkit-13-1", "leave nvidia.cuda out: no other off"),
        ("cuda-toolkit-12-8 isn't offered", "leave nvidia.cuda out: no other offered release of CUDA fits"),
        ("libnccl2=*+cuda12.* isn't offered", "see why apt there has no libnccl2 (nvidia.mirror"),
        ("docker.io isn't offered", "see why apt there has no docker.io (nvidia.mirror"),
    ],
)
def test_cuda_its_libraries_the_toolkit_or_an_engine_is_not_offered(absent: str, step: str) -> None:
    settings: dict[str, Any] = {"driver": "580", "cuda": "12.8", "cudnn": "9", "nccl": True}
    error = refusal("vm", UBUNTU, Said(chosen=None, against=(absent,)), containerToolkit="docker", **settings)
    assert absent in error.found and error.next.startswith(step)


def test_what_others_need_is_not_removed() -> None:
    error = refusal("vm", UBUNTU, Said(chosen=0, version="580.178.04", removes=("mine", "yours")), driver="580")
    assert error.found == "apt would remove mine yours" and "`apt-get remove mine yours`" in error.next


def test_headers_that_no_repository_has_are_refused_for_each_kernel_of_a_host() -> None:
    lacking = Said(chosen=0, version="580.178.04", lacking=("6.14.11-9-pve",))
    error = refusal("host", PROXMOX, lacking, driver="580")
    assert error.found.startswith("6.14.11-9-pve: not installed") and "No-Subscription" in error.next
    error = refusal("vm", UBUNTU, Said(chosen=0, version="580.178.04", lacking=("6.8.0-86-generic",)), driver="580")
    assert error.found.startswith("6.8.0-86-generic: not installed") and "Subscription" not in error.next


def test_a_full_disk_is_said_before_anything_is_installed() -> None:
    error = refusal("vm", UBUNTU, Said(chosen=0, needs=5_400_000_000, room=1_000_000_000), driver="580", cuda="12.8")
    assert "5400 MB" in error.wanted and "1000 MB" in error.found and "leave nvidia.cuda out" in error.next
    assert refused(replace(request("vm", UBUNTU, driver="580"), said=Said(chosen=0, needs=5, room=None))) == []


def test_no_way_back_is_said_before_a_driver_is_replaced() -> None:
    said = Said(chosen=0, version="580.178.04", was="570.195.03", way_back=False)
    assert "there is no way back to 570.195.03: it came by" in all_notes("vm", UBUNTU, said)


def test_a_restart_of_a_vm_for_its_driver_is_said() -> None:
    said = Said(chosen=0, version="580.178.04")
    assert "restarts" not in all_notes("vm", UBUNTU | {"loaded": "580.178.04"}, said)
    assert "restarts once more: 570.195.03 is loaded" in all_notes("vm", UBUNTU | {"loaded": "570.195.03"}, said)
    assert "restarts once more: nouveau is loaded" in all_notes("vm", UBUNTU | {"nouveau": True}, said)
    assert "restarts" not in all_notes("host", PROXMOX | {"loaded": "570.195.03"}, said)


def test_why_a_better_way_is_not_taken_is_said() -> None:
    said = Said(chosen=2, version="570.195.03", against=("570 (nvidia-utils-570): apt would bring\n580.178.04",))
    text = all_notes("vm", UBUNTU, said, driver="570")
    assert "passed over: 570 (nvidia-utils-570): apt would bring 580.178.04" in text


def test_what_comes_is_said_as_far_as_it_is_known() -> None:
    asked = request("vm", UBUNTU, cuda="12.8", cudnn="9", nccl=True, containerToolkit="docker")
    before, after = described(asked), described(replace(asked, said=Said(chosen=0, version="580.178.04")))
    assert before.startswith("driver 580 (open kernel modules, for Blackwell), its compute and video libraries, ")
    assert "CUDA 12.8, cuDNN 9, NCCL, container toolkit for docker, what its repositories have is asked" in before
    assert after.startswith("driver 580.178.04 (open kernel modules, for Blackwell), from packages, ")
    assert coming(asked) == tries(asked)[0]
    stays = Said(chosen=0, version="580.178.04", was="580.178.04")
    assert "(open kernel modules, for Blackwell), which is there, its" in described(replace(asked, said=stays))
    replaced = Said(chosen=0, version="580.178.04", was="570.195.03", way_back=True)
    assert ", in place of 570.195.03, from packages, " in described(replace(asked, said=replaced))
    # Other modules of the same version.
    modules = Said(
        chosen=0, version="580.178.04", was="580.178.04", way_back=True, comes=("a=1", "b=2"), needs=3_400_000_000
    )
    assert "in place of" not in described(replace(asked, said=modules))
    assert described(replace(asked, said=modules)).endswith(", 2 packages come or change (3400 MB)")
    run = Said(chosen=len(tries(asked)) - 1, version="595.91.07")
    assert coming(replace(asked, said=run)) == replace(tries(asked)[-1], driver="595.91.07")
    assert "by NVIDIA's installer" in described(replace(asked, said=run))
    unread = request("lxc")
    assert coming(unread) is None and described(unread).startswith("the host's driver, ")


# -- kernels and Secure Boot -----------------------------------------------------------------------------------
def test_a_containers_kernel_is_the_hosts_matter() -> None:
    system = CONTAINER | {"host_driver": "550.163.01", "kernels": ("6.17.13-2-pve",), "secure_boot": True}
    assert refused(request("lxc", system)) == []


@pytest.mark.parametrize("target", ["vm", "host"])
def test_secure_boot_is_said_before_anything_is_installed(target: Target) -> None:
    error = refusal(target, {"secure_boot": True, "cards": (RTX_3090,)}, driver="580")
    assert "Key was rejected by service" in error.why
    # The key is the one that dkms signs with; dkms has that of Ubuntu's own program there (dkms.in, prepare_mok).
    assert "either turn Secure Boot off" in error.next and "mokutil --import /var/lib/dkms/mok.pub`" in error.next
    assert "on Ubuntu `mokutil --import /var/lib/shim-signed/mok/MOK.der`" in error.next
    assert refused(request(target, {"secure_boot": True, "mok_enrolled": True, "cards": (RTX_3090,)})) == []


# -- systems ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("distribution", "version", "target"),
    [("ubuntu", "20.04", "vm"), ("debian", "11", "vm"), ("fedora", "43", "vm"), ("ubuntu", "24.04", "host")],
)
def test_another_system_is_refused(distribution: str, version: str, target: Target) -> None:
    error = refusal(target, {"distribution": distribution, "version": version}, driver="580")
    assert f"{distribution.capitalize()} {version}" in error.found and "Debian 13" in error.wanted


@rows(("row", "branch"), [(row, branch) for row in load().distributions for branch in (580, 590, 595, 615)])
def test_every_distribution_and_target_has_a_plan(row: Any, branch: int) -> None:
    for target in row.targets:
        system = {"distribution": row.id, "version": row.version, "cards": (RTX_3090,), "host_driver": ""}
        kernel = {"ubuntu": "6.8.0-86-generic", "debian": "6.12.48+deb13-amd64"}[row.id]
        if target == "lxc":
            system |= {"host_driver": f"{branch}.48.01", "cards": None}
        plan = planned(target, system | {"kernels": (kernel,), "running": kernel}, driver=str(branch))
        assert plan.tries[0].driver.startswith(str(branch)) and plan.tries[0].packages
        assert plan.repositories[0].line.count(row.path) == 1


def test_without_a_distribution_there_is_no_way_yet() -> None:
    assert tries(request("vm", {"cards": (RTX_5090,)}, driver="580")) == ()


def test_all_that_stands_against_a_stack_is_said_at_once() -> None:
    asked = request("host", PROXMOX | {"cards": (RTX_5090,), "secure_boot": True}, driver="550", cuda="13.0")
    assert len(refused(asked)) == 3


# -- the installer ---------------------------------------------------------------------------------------------
def test_the_installer_of_a_branch_is_its_newest_known_release() -> None:
    plan = planned("vm", UBUNTU, driver="580", source="run")
    assert installer(plan).version == "580.178.04" and installer(plan).arguments[-1] == "--kernel-module-type=open"
    assert plan.headers[0] == "linux-headers-6.8.0-86-generic" and plan.repositories == ()


def test_an_installer_before_555_takes_its_flavour_otherwise() -> None:
    system = UBUNTU | {"cards": (RTX_3090,)}
    assert installer(planned("vm", system, driver="550.163.01", source="run")).arguments[-1] == "-m=kernel-open"


def test_a_branch_of_which_no_installer_is_known_has_none() -> None:
    error = refusal("vm", UBUNTU, driver="625", source="run")
    assert error.wanted.endswith("installer of branch 625") and "docs/nvidia.md#nvidias-installer" in error.next


def test_mirrors_stand_for_nvidias_servers() -> None:
    mirror = {"cuda": "https://m.lan/cuda", "containerToolkit": "https://m.lan/ctk", "run": "https://m.lan/run"}
    plan = planned("vm", UBUNTU, driver="580", containerToolkit="docker", mirror=mirror)
    assert "https://m.lan/cuda/ubuntu2404/x86_64 /" in plan.repositories[0].line
    assert plan.repositories[1].key_url == "https://m.lan/ctk/gpgkey"
    assert ".asc,C95B321B61E88C1809C4F759DDCAE044F796ECB0] " in plan.repositories[1].line
    assert "Pin: origin m.lan" in plan.files[-1].content
    there = installer(planned("vm", UBUNTU, driver="580"))
    assert installer(plan).url.startswith("https://m.lan/run/Linux-x86_64/")
    assert installer(plan).sha256 == there.sha256


def test_an_installer_without_checksum_is_refused_until_the_settings_have_it() -> None:
    error = refusal("vm", UBUNTU, driver="570.211.01", source="run")
    assert "the SHA-256 of NVIDIA's installer of 570.211.01" in error.wanted
    assert "NVIDIA-Linux-x86_64-570.211.01.run.sha256sum" in error.next
    assert 'nvidia.runSha256: {"570.211.01": "..."}' in error.next
    known = {"570.211.01": "ab" * 32}
    assert installer(planned("vm", UBUNTU, driver="570.211.01", source="run", runSha256=known)).sha256 == "ab" * 32


def test_the_settings_checksum_comes_before_the_known_one() -> None:
    plan = planned("vm", UBUNTU, driver="580.105.08", source="run", runSha256={"580.105.08": "cd" * 32})
    assert installer(plan).sha256 == "cd" * 32


# -- containers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("driver", ["595", "580.105.09", "580.105", "58"])
def test_a_container_can_not_have_another_version_than_its_host(driver: str) -> None:
    settings = Nvidia().model_copy(update={"driver": driver})
    errors = refused(Request.of("lxc", settings, "ct", **CONTAINER))
    assert [error.wanted for error in errors] == ["ct: the version of the host's driver"]


@pytest.mark.parametrize("driver", ["580", "580.105.08"])
def test_a_container_may_say_what_its_host_has(driver: str) -> None:
    assert {way.driver for way in planned("lxc", CONTAINER, driver=driver).tries} == {"580.105.08"}


def test_a_container_on_a_host_without_a_driver() -> None:
    """Which has no node of a card either."""
    assert "graphics cards: none" in refusal("lxc", CONTAINER | {"host_driver": "", "cards": ()}).found
    error = refusal("lxc", CONTAINER | {"host_driver": "", "cards": (RTX_3090,)})
    assert error.wanted.endswith("the version of the host's driver") and "give the host that driver" in error.next


def test_a_container_whose_host_was_not_read_has_no_way_yet() -> None:
    unread = request("lxc", CONTAINER | {"host_driver": None})
    assert refused(unread) == [] and tries(unread) == ()


# -- CUDA and runtimes -----------------------------------------------------------------------------------------
@rows(
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
    ("card", "cuda", "expected"),
    [
        (RTX_3090, "12.8", ["580", "595", "620"]),
        (RTX_3090, "13.1", ["595", "620"]),
        (RTX_5090, "13.5", ["620"]),
        (RTX_3090, "13.9", ["620"]),
    ],
)
def test_without_a_driver_in_the_settings_it_is_one_that_cuda_takes(card: str, cuda: str, expected: list[str]) -> None:
    plan = planned("vm", UBUNTU | {"cards": (card,)}, cuda=cuda, source="packages")
    assert [*dict.fromkeys(way.driver for way in plan.tries)] == expected


def test_a_card_for_which_no_driver_runs_that_cuda_is_told_what_does() -> None:
    errors = refused(request("vm", {"cards": (GTX_1080_TI,)}, cuda="13.1"))
    assert {"set nvidia.cuda" in error.next for error in errors} == {True}


@rows(("driver", "cuda"), [("580", "12.8"), ("580", "13.0.2"), ("570.26", "12.8"), ("595", "13.2"), ("610", "12.4")])
def test_cuda_with_a_driver_that_is_new_enough(driver: str, cuda: str) -> None:
    assert refused(request("vm", {"cards": (RTX_3090,)}, driver=driver, cuda=cuda)) == []


def test_a_driver_of_the_same_major_family_can_be_allowed() -> None:
    system = UBUNTU | {"cards": (RTX_3090,)}
    allowed: dict[str, Any] = {"cuda": "13.1", "allowMinorVersionCompatibility": True}
    assert "allowMinorVersionCompatibility" in refusal("vm", system, driver="580", cuda="13.1").next
    assert ways(planned("vm", system, driver="580", **allowed))[0] == "580 packages"
    assert "without PTX" in all_notes("vm", system, driver="580", **allowed)
    # Not where apt brings a newer one.
    assert "without PTX" not in all_notes("vm", system, Said(chosen=0, version="595.91.07"), **allowed)
    below = refusal("vm", system, driver="570", **{**allowed, "cuda": "13.0"})
    assert "allowMinorVersionCompatibility" not in below.next


def test_the_way_out_of_an_old_driver_fits_card_and_cuda() -> None:
    assert 'set nvidia.driver: "595"' in refusal("vm", {"cards": (RTX_5090,)}, driver="580", cuda="13.2").next


def test_in_a_container_it_is_the_hosts_driver_that_is_too_old() -> None:
    assert "for the host" in refusal("lxc", CONTAINER, cuda="13.2").next


@pytest.mark.parametrize(
    ("card", "cuda", "expected"),
    [(RTX_5090, "12.6", "CUDA 12.8 or later"), (GTX_1080_TI, "13.0", "CUDA 12.9 or earlier")],
)
def test_a_cuda_that_can_not_build_for_the_card(card: str, cuda: str, expected: str) -> None:
    assert expected in refusal("vm", {"cards": (card,)}, driver="580", cuda=cuda).wanted


def test_a_cuda_that_does_not_exist_and_one_newer_than_the_data() -> None:
    said = Said(
        chosen=None, against=("cuda-toolkit-12-7 isn't offered; there is cuda-toolkit-12-6, cuda-toolkit-12-8",)
    )
    pascal = UBUNTU | {"cards": (GTX_1080_TI,)}
    error = refusal("vm", pascal, said, driver="580", cuda="12.7")
    assert "cuda-toolkit-12-7 isn't offered" in error.found and error.next.startswith('set nvidia.cuda: "12.8"')
    assert refusal("vm", pascal, driver="535", cuda="12.7").wanted.endswith(
        "a driver for CUDA 12.7: 560.28.03 or later"
    )
    assert planned("vm", UBUNTU, driver="620", cuda="13.9").beside[0] == "cuda-toolkit-13-9"


def test_an_update_of_cuda_is_installed_as_that_update() -> None:
    plan = planned("vm", UBUNTU, driver="580", cuda="12.8.1")
    assert plan.beside[0] == "cuda-toolkit-12-8=12.8.1-*" and plan.cuda == "12.8.1"


def test_cuda_beside_the_installer_still_takes_the_repository() -> None:
    plan = planned("vm", UBUNTU, driver="580", source="run", cuda="12.8")
    assert [one.keyring for one in plan.repositories] == ["/usr/share/keyrings/homelab-cuda.asc"]


def test_what_is_proposed_suits_cards_driver_and_cuda() -> None:
    assert fitting_drivers(request("vm", {"cards": (RTX_3090,)}))[:5] == ["580", "595", "620", "615", "610"]
    assert fitting_drivers(request("vm", {"cards": (GTX_1050M,)})) == ["470"]
    assert fitting_drivers(request("vm", {"cards": (RTX_3090,)}, cuda="13.2"))[0] == "595"
    assert "570" not in fitting_drivers(request("vm", {"cards": (RTX_5090,)}, cuda="12.9"))
    assert "615" not in fitting_drivers(request("vm", {"cards": (RTX_3090,)}, source="run"))
    assert fitting_drivers(request("vm", {"cards": (RTX_5090, GTX_1080_TI)})) == []
    assert fitting_cudas(request("vm", {"cards": (RTX_5090,)}, driver="580")) == ["13.0", "12.9", "12.8"]
    assert fitting_cudas(request("lxc", CONTAINER | {"cards": (GTX_1080_TI,)}))[0] == "12.9"
    assert fitting_cudas(request("vm", {"cards": ("10de:06c0",)})) == []


def test_a_runtime_is_never_installed_unasked() -> None:
    system = UBUNTU | {"runtimes": ("podman",)}
    assert "nvidia.docker: install" in refusal("vm", system, driver="580", containerToolkit="docker").next
    plan = planned("vm", system, driver="580", containerToolkit="docker", docker="install")
    assert plan.beside[-1] == "docker.io" and cdi(request("vm", system, containerToolkit="docker")) == ""
    assert "docker.io" not in planned("vm", UBUNTU, driver="580", containerToolkit="docker").beside
    assert cdi(request("vm", system, containerToolkit="podman")) == "/etc/cdi/nvidia.yaml"
    error = refusal("vm", system, driver="580", containerToolkit="k3s", docker="install")
    assert "k3s by its own installer" in error.next


# -- what the system is told -----------------------------------------------------------------------------------
def test_how_long_something_may_take_is_told_and_is_no_other_request() -> None:
    first, second = planned("vm", UBUNTU), planned("vm", UBUNTU, timeouts={"lock": 60})
    assert (first.software.lock_seconds, second.software.lock_seconds) == (600, 60) and first.digest == second.digest
    assert first.digest != planned("vm", UBUNTU, cuda="12.8").digest
    context = planned("vm", UBUNTU | {"host_driver": None}, driver="580").software.context
    assert (context.name, context.needs_open, context.driver) == ("vms.gaming", True, "580")


# -- all together ----------------------------------------------------------------------------------------------
def test_every_branch_and_generation_is_planned_or_refused_with_a_step() -> None:
    data = load()
    for branch, generation in itertools.product(data.branches, data.generations):
        card = f"10de:{generation.ranges[-1][:4]}"
        asked = request("vm", UBUNTU | {"cards": (card,)}, driver=str(branch))
        flavours = {"open", "proprietary"} if generation.modules == "both" else {generation.modules}
        fits = bool(flavours & {*data.flavours(branch)}) and generation.first.major <= branch <= generation.last
        assert bool(refused(asked)) != fits == bool(tries(asked)), (branch, generation.name)
        assert all(error.next and error.why and error.found and error.wanted for error in refused(asked))
