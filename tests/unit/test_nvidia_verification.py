"""homelab/nvidia/verification.py: what a verification found is judged, and each failure answered with its cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab import tables
from homelab.errors import HomelabError
from homelab.nvidia import verification
from homelab.nvidia.request import Request
from homelab.nvidia.settings import Nvidia
from homelab.nvidia.verification import judge
from homelab.shapes import NvidiaOutput
from remote_scripts.both.nvidia_packages import Answer as Installed
from remote_scripts.both.nvidia_verification import Answer
from remote_scripts.both.read_system import SystemFacts
from remote_scripts.both.symptoms import Target
from remote_scripts.tools.plain import of_plain
from tests.rows import rows

TEXTS: dict[str, list[str]] = tables.read(Path(__file__).parent / "nvidia_texts.yaml")
HEAD = "index, name, uuid, driver_version, memory.total [MiB], pci.bus_id, pci.device_id, compute_cap\n"


@pytest.mark.parametrize(
    ("said", "address"),
    [("00000000:01:00.0", "0000:01:00.0"), ("00010000:0A:00.0", "10000:0a:00.0"), ("0000:01:00.0", "0000:01:00.0")],
)
def test_nvidia_smis_addresses_are_those_of_sysfs(said: str, address: str) -> None:
    assert verification._address(said) == address


ROW = "{}, NVIDIA GeForce RTX 5090, GPU-0b11d014-{}, 580.105.08, 32607 MiB, 00000000:0{}:00.0, 0x2B8510DE, 12.0\n"
NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
ENCODE, DECODE, EGL, GLX = "libnvidia-encode.so.1", "libnvcuvid.so.1", "libEGL_nvidia.so.0", "libGLX_nvidia.so.0"
MISSING = "cannot open shared object file: No such file or directory"
Expected = tuple[Request, Installed]


def expected(
    driver: str = "580.105.08",
    cards: tuple[str, ...] | None = ("10de:2b85",),
    flavour: Any = "open",
    demanded: list[str] | None = None,
    target: Target = "vm",
    host_driver: str | None = None,
    before: str = "",
    **settings: Any,
) -> Expected:
    """A stack with CUDA and docker's toolkit, with changes, and what the packages' step has answered."""
    wanted = Nvidia.model_validate({"cuda": "12.8", "containerToolkit": "docker", "capabilities": demanded, **settings})
    facts = SystemFacts("ubuntu", "24.04", None, "6.8.0-86-generic", False, None, cards, host_driver)
    installed = Installed(
        version=driver, source="packages", flavour=flavour, capabilities=("compute", "video"), reboot="no", why="",
        cuda="12.8", toolkit="1.18.0-1", packages=(), changed=True, before=before,
    )  # fmt: skip
    return Request.of(target, wanted, "vms.gaming", facts), installed


WANTED = expected()


def done(output: str = "", status: int = 0) -> dict[str, Any]:
    return {"status": status, "output": output}


def found(cards: int = 1, **changes: Any) -> Answer:
    """A system on which all works, with changes."""
    rows = "".join(ROW.format(number, number, number + 1) for number in range(cards))
    answer = {
        "nvidia_smi": done(HEAD + rows),
        "nvcc": done("nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\n"),
        "program": done("1 CUDA device(s)\nResult = PASS\n"),
        "container": done("".join(f"GPU {n}: NVIDIA GeForce RTX 5090 (UUID: x)\n" for n in range(cards))),
        "uvm": done("".join(f"{path}: opened\n" for path in NODES)),
        "libraries": done(f"{ENCODE}: loaded, NVENC 13.0\n{DECODE}: loaded\n"),
        "cdi": None,
        "kernel_log": "",
        "loaded": "580.105.08",
        "flavour": "open",
        "boot_id": "b1",
        **changes,
    }
    return of_plain(Answer, answer)


def errors(wanted: Expected = WANTED, **changes: Any) -> list[HomelabError]:
    return judge(found(**changes), *wanted)[1]


def test_what_works_is_put_out_and_there_is_nothing_to_say() -> None:
    output, said = judge(found(), *WANTED)
    assert said == []
    assert output == {
        "driver": "580.105.08",
        "flavour": "open",
        "gpus": [
            {
                "name": "NVIDIA GeForce RTX 5090",
                "uuid": "GPU-0b11d014-0",
                "memory": "32607 MiB",
                "address": "0000:01:00.0",
                "computeCapability": "12.0",
            }
        ],
        "cuda": "12.8",
        "program": True,
        "container": True,
        "uvm": True,
        "video": True,
        "nvenc": "13.0",
        "graphics": None,
        "cudnn": None,
        "nccl": None,
        "cdi": None,
        "unchecked": [],
    }
    assert output.keys() == NvidiaOutput.__annotations__.keys()


# -- what the driver is for ------------------------------------------------------------------------------------
LACKING = done(f"{ENCODE}: {MISSING}\n{DECODE}: loaded\n")


def test_a_driver_that_was_there_without_video_is_left_alone() -> None:
    output, said = judge(found(libraries=LACKING), *WANTED)
    assert (said, output["video"]) == ([], None)


def test_video_that_was_demanded_and_is_missing_is_an_error() -> None:
    output, (error,) = judge(found(libraries=LACKING), *expected(demanded=["compute", "video"]))
    assert output["video"] is False and "NVENC and NVDEC" in error.wanted and ENCODE in error.found


@pytest.mark.parametrize(
    "said", ["undefined symbol: nvEnc", "file too short", "loaded, NVENC error 15"], ids=["version", "torn", "refused"]
)
def test_a_library_that_is_there_and_does_not_work_is_an_error(said: str) -> None:
    (error,) = errors(libraries=done(f"{ENCODE}: {said}\n{DECODE}: loaded\n"))
    assert "NVENC" in error.wanted and ENCODE in error.found


def test_a_library_that_was_only_loaded_tells_no_version() -> None:
    output, said = judge(found(libraries=done(f"{ENCODE}: loaded\n{DECODE}: loaded\n")), *WANTED)
    assert (said, output["video"], output["nvenc"]) == ([], True, None)


def test_a_card_without_a_decoder_is_no_fault_of_the_libraries() -> None:
    assert errors(libraries=done(f"{ENCODE}: loaded, NVENC 13.0\n{DECODE}: loaded, no H.264\n")) == []


def test_graphics_that_load_are_put_out() -> None:
    output, said = judge(found(libraries=done(f"{EGL}: loaded\n{GLX}: loaded\n")), *WANTED)
    assert (said, output["graphics"], output["video"]) == ([], True, None)


def test_a_container_that_lacks_what_the_system_has_is_an_error() -> None:
    (error,) = errors(container=done(f"GPU 0: NVIDIA GeForce RTX 5090 (UUID: x)\n{ENCODE}: {MISSING}\n"))
    assert "NVIDIA_DRIVER_CAPABILITIES" in error.wanted and ENCODE in error.found


def test_libraries_of_a_system_without_cards_are_not_judged_beside_the_driver() -> None:
    smi = done("No devices were found", 6)
    said = errors(expected(demanded=["compute", "video"]), nvidia_smi=smi, libraries=LACKING)
    assert said and not [error for error in said if "NVENC" in error.wanted]


# -- CDI -------------------------------------------------------------------------------------------------------
def test_a_specification_of_the_driver_that_runs_is_put_out() -> None:
    output, said = judge(found(cdi="/etc/cdi/nvidia.yaml 580.105.08"), *WANTED)
    assert (said, output["cdi"]) == ([], "580.105.08")


@pytest.mark.parametrize(
    ("text", "what", "how"),
    [("/etc/cdi/nvidia.yaml 580.95.05", "580.95.05", "`pulumi up --refresh`"),
     ("/etc/cdi/nvidia.yaml 580.105.08 580.95.05", "580.105.08 and 580.95.05", "`pulumi up --refresh`"),
     ("/run/cdi/nvidia.yaml 580.95.05\n/etc/cdi/nvidia.yaml 580.105.08", "/run/cdi", "nvidia-cdi-refresh")],
    ids=["of another driver", "of two drivers", "the toolkit's own, which comes first"],
)  # fmt: skip
def test_a_specification_of_another_driver_is_an_error(text: str, what: str, how: str) -> None:
    (error,) = errors(cdi=text)
    assert "580.105.08" in error.wanted and what in error.found and how in error.next


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("specification-")])
def test_of_a_specification_one_error_is_enough(name: str) -> None:
    (error,) = errors(cdi="/etc/cdi/nvidia.yaml 580.95.05", container=done(TEXTS[name][0], 1))
    assert error.symptom == name


@pytest.mark.parametrize("text", [None, "", "/etc/cdi/management.yaml "], ids=["unused", "none", "without libraries"])
def test_nothing_is_said_of_a_specification_that_names_no_driver(text: str | None) -> None:
    output, said = judge(found(cdi=text), *WANTED)
    assert (said, output["cdi"]) == ([], None)


# -- beside CUDA -----------------------------------------------------------------------------------------------
BESIDE = expected(cudnn="9", nccl=True)
CUDNN, NCCL = "libcudnn.so.9: loaded, cuDNN 9.10.2 for CUDA 12.9\n", "libnccl.so.2: loaded, NCCL 2.27.3\n"


def test_cudnn_and_nccl_are_put_out_with_their_versions() -> None:
    output, said = judge(found(libraries=done(CUDNN + NCCL)), *BESIDE)
    assert (said, output["cudnn"], output["nccl"]) == ([], "9.10.2", "2.27.3")


@pytest.mark.parametrize(
    ("text", "why"),
    [(f"libcudnn.so.9: {MISSING}\n{NCCL}", "isn't there"), (CUDNN.replace("12.9", "13.0") + NCCL, "another major release"), (NCCL, "isn't there")],
    ids=["missing", "of another CUDA", "nothing said"],
)  # fmt: skip
def test_a_cudnn_that_does_not_serve_is_an_error(text: str, why: str) -> None:
    (error,) = errors(BESIDE, libraries=done(text))
    assert "libcudnn.so.9 of CUDA 12" in error.wanted and why in error.why


def test_what_wasnt_asked_for_is_null() -> None:
    output, said = judge(
        found(nvcc=None, program=None, container=None, uvm=None), *expected(cuda=None, containerToolkit=None)
    )
    assert said == []
    assert {key: output[key] for key in ("cuda", "program", "container", "uvm")} == dict.fromkeys(
        ("cuda", "program", "container", "uvm")
    )


# -- what isn't as wanted --------------------------------------------------------------------------------------
@rows(
    ("wanted", "words"),
    [
        ({"driver": "580.95.05"}, ("driver 580.95.05", "580.105.08 is in use", "reboot")),
        ({"flavour": "proprietary"}, ("the proprietary kernel modules", "open ones are loaded", "--refresh")),
        ({"cuda": "13.0"}, ("CUDA 13.0", "release 12.8, V12.8.93", "--refresh")),
        ({"cards": ("10de:2684",)}, ("10de:2684 (Ada)", "NVIDIA GeForce RTX 5090 (10de:2b85)", "gpuAssignment")),
        ({"cards": ("10de:2b85", "10de:2b85")}, ("2 card(s)", "1 in nvidia-smi", "dmesg")),
        ({"cards": ("10de:2b85", "10de:9999")}, ("10de:9999 (unknown)", "1 in nvidia-smi", "dmesg")),
    ],
)  # fmt: skip
def test_what_differs_is_told(wanted: dict[str, Any], words: tuple[str, str, str]) -> None:
    (error,) = errors(expected(**wanted))
    assert error.wanted.startswith("vms.gaming: ")
    assert (words[0] in error.wanted, words[1] in error.found, words[2] in error.next) == (True, True, True)


def test_two_cards_in_any_order_are_the_two_that_were_wanted() -> None:
    rows = ROW.format(0, 0, 1) + ROW.format(1, 1, 2).replace("0x2B85", "0x2684").replace("5090", "4090")
    wanted = expected(cards=("10de:2684", "10DE:2B85"))
    inside = done("GPU 0: a (UUID: x)\nGPU 1: b (UUID: y)\n")
    assert errors(wanted, nvidia_smi=done(HEAD + rows), container=inside) == []


def test_a_container_that_sees_fewer_cards_is_told() -> None:
    (error,) = errors(expected(cards=None), cards=2, container=done("GPU 0: NVIDIA GeForce RTX 5090 (UUID: x)\n"))
    assert "all of its 2 cards" in error.wanted and "lists 1" in error.found


def test_cards_that_nobody_knows_may_be_any() -> None:
    assert errors(expected(cards=None), cards=3) == []


def test_an_nvidia_smi_that_knows_neither_ids_nor_capabilities_counts() -> None:
    head = "index, name, uuid, driver_version, memory.total [MiB], pci.bus_id\n"
    row = "0, GeForce GTX 1080, GPU-1, 470.256.02, 8118 MiB, 00000000:01:00.0\nWARNING: infoROM is corrupted at gpu 0000:01:00.0\n"
    wanted = expected(driver="470.256.02", cards=("10de:1b80",))
    output, said = judge(found(nvidia_smi=done(head + row)), *wanted)
    assert (said, len(output["gpus"]), output["gpus"][0]["computeCapability"]) == ([], 1, None)


def test_what_isnt_known_of_a_card_is_null() -> None:
    text = HEAD + ROW.format(0, 0, 1).replace("32607 MiB", "[N/A]").replace("12.0", "[Not Supported]")
    card = judge(found(nvidia_smi=done(text)), *WANTED)[0]["gpus"][0]
    assert (card["memory"], card["computeCapability"]) == (None, None)


# -- failures, by their real texts -----------------------------------------------------------------------------
@rows(
    ("smi", "log", "words"),
    [
        ("No devices were found", TEXTS["needs-open-modules"][0], "works with the open ones alone"),
        ("No devices were found", TEXTS["memory-window"][0], "no room"),
        ("No devices were found", TEXTS["not-reset"][0], "power the host off"),
        ("No devices were found", TEXTS["fallen-off-the-bus"][0], "doesn't answer any more"),
        ("No devices were found", TEXTS["gsp-timeout"][0], "GSP timed out"),
        ("No devices were found", "", "works with the open ones alone"),
        (TEXTS["not-communicating"][-1], "", "no module is loaded"),
        (TEXTS["not-communicating"][-1], TEXTS["needs-proprietary-modules"][0], "older than Turing"),
        (TEXTS["not-communicating"][-1], TEXTS["dropped-card"][0], "dropped the card's generation"),
        (TEXTS["not-communicating"][-1], "Loading of unsigned module is rejected", "Secure Boot"),
        (TEXTS["version-mismatch"][0], TEXTS["version-mismatch"][1], "while the older module stayed loaded"),
        (TEXTS["libraries-missing"][0], "", "packages were removed"),
    ],
)  # fmt: skip
def test_a_driver_that_doesnt_work_is_one_error_with_its_cause(smi: str, log: str, words: str) -> None:
    (error,) = errors(
        nvidia_smi=done(smi, 9),
        kernel_log=log,
        program=done("x", 1),
        container=done("y", 125),
        uvm=done("/dev/nvidia0: No such file or directory\n", 1),
        flavour="proprietary",
    )
    assert words in error.why + error.next, str(error)
    assert error.wanted.startswith("vms.gaming: ")


def test_no_devices_with_the_right_modules_points_to_the_kernel_log() -> None:
    (error,) = errors(nvidia_smi=done("No devices were found", 6), program=None, container=None, uvm=None)
    assert "dmesg | grep NVRM" in error.next


def test_what_the_kernel_said_before_the_module_was_last_loaded_explains_nothing() -> None:
    loaded = "nvidia-nvlink: Nvlink Core is being initialized, major device number 511"
    smi = done("No devices were found", 6)
    for log, known in (
        (f"{TEXTS['memory-window'][0]}\n{loaded}", False),
        (f"{loaded}\n{TEXTS['memory-window'][0]}", True),
    ):
        (error,) = errors(nvidia_smi=smi, kernel_log=log, program=None, container=None, uvm=None)
        assert ("no room" in error.why) is known, str(error)


def test_in_a_container_the_same_text_is_the_hosts_business() -> None:
    wanted = expected(target="lxc", host_driver="580.105.08", flavour=None)
    (error,) = errors(
        wanted, nvidia_smi=done(TEXTS["version-mismatch"][0], 18), program=done("x", 1), container=None, uvm=None
    )
    assert "580.105.08" in error.why


def test_a_missing_nvidia_smi_is_told() -> None:
    (error,) = errors(
        nvidia_smi=done("timeout: failed to run command 'nvidia-smi'", 127), program=None, container=None, uvm=None
    )
    assert error.wanted.startswith("vms.gaming: nvidia-smi") and "failed to run command" in error.found
    assert "`pulumi up --refresh`" in error.next


def test_the_kernel_log_of_a_card_that_works_is_nobodys_business() -> None:
    assert errors(kernel_log=TEXTS["fallen-off-the-bus"][0]) == []


@rows(
    ("part", "text", "words"),
    [
        ("program", TEXTS["no-kernel-image"][0], "older than the card"),
        ("program", TEXTS["architecture-unknown"][0], "older than the card"),
        ("program", TEXTS["driver-too-old-for-cuda"][0], "older than the CUDA toolkit"),
        ("program", "CUDA error 999: unknown error", "nvidia-uvm isn't loaded"),
        ("program", TEXTS["compiler-missing"][0], "g++"),
        ("program", "card 0: 1 + 1 gave 3 at 0", "other programs would fail as well"),
        ("container", TEXTS["runtime-not-configured"][0], "nvidia-ctk runtime configure"),
        ("container", TEXTS["cgroup-rules"][0], "cgroup rules"),
        ("container", TEXTS["specification-outdated"][0], "580.95.05"),
        ("container", TEXTS["hook-not-supported"][0], "--runtime=nvidia"),
        ("container", TEXTS["engine-down"][0], "journalctl"),
        ("container", TEXTS["nvml-lost"][0], "daemon-reload"),
        ("container", "exec format error", "by hand"),
    ],
)
def test_a_program_that_fails_with_a_working_driver_has_another_cause(part: str, text: str, words: str) -> None:
    changes: dict[str, Any] = {part: done(text, 1)}
    output, (error,) = judge(found(**changes), *WANTED)
    assert words in error.why + error.next, str(error)
    quoted = [" ".join(line.split())[:50] for line in text.splitlines()]
    assert any(line in error.found for line in quoted)
    assert {**output}[part] is False


@rows(("cdi", "words"), [("/etc/cdi/nvidia.yaml 580.105.08", "restart that engine"), ("", "nvidia-ctk cdi generate")])
def test_an_engine_that_doesnt_know_a_specification_that_is_there_is_restarted(cdi: str, words: str) -> None:
    (error,) = errors(container=done(TEXTS["cards-unresolved"][-1], 1), cdi=cdi)
    assert words in error.next


def test_a_program_that_ends_well_and_says_nothing_hasnt_passed() -> None:
    output, (error,) = judge(found(program=done("")), *WANTED)
    assert output["program"] is False and "nothing was said" in error.found


@rows(
    ("target", "reason", "words"),
    [
        ("vm", "No such file or directory", "nvidia-modprobe -u -c 0"),
        ("lxc", "No such file or directory", "wasn't given it"),
        ("lxc", "Permission denied", "mode=0666"),
        ("host", "Permission denied", "NVreg_DeviceFileMode"),
        ("lxc", "Operation not permitted", "control group"),
        ("lxc", "No such device or address", "refuses"),
        ("vm", "no answer", "refuses"),
    ],
)
def test_why_an_ordinary_user_cant_use_cuda(target: Any, reason: str, words: str) -> None:
    text = f"/dev/nvidiactl: opened\n/dev/nvidia-uvm: {reason}\n/dev/nvidia0: {reason}\n"
    missing = done("CUDA error 999: unknown error", 1)
    (error,) = errors(expected(target=target), uvm=done(text, 1), program=missing)
    assert words in error.why + error.next
    assert f"/dev/nvidia-uvm: {reason}" in error.found and error.wanted.endswith("opened by an ordinary user")


def test_what_took_too_long_is_told_as_that() -> None:
    (smi,) = errors(nvidia_smi=done("", 124), program=done("", 124), container=None, uvm=None)
    (program,) = errors(program=done("", 124))
    assert "nvidia.timeouts.verify" in smi.found + smi.next and "hangs" in smi.why
    assert "nvidia.timeouts.verify" in program.next


def test_a_compiler_that_isnt_there_is_told() -> None:
    missing = done("env: '/usr/local/cuda-12.8/bin/nvcc': No such file or directory", 127)
    said = errors(nvcc=missing, program=missing)
    assert [error.wanted for error in said][0] == "vms.gaming: nvcc of CUDA 12.8"
    assert "--reinstall cuda-nvcc-12-8`" in said[0].next
    assert len(said) == 1


def test_an_update_that_does_not_work_says_once_how_the_driver_before_comes_back() -> None:
    failed = {"program": done("boom", 1), "container": done("bang", 1)}
    first, second = errors(expected(before="570.211.01"), **failed)
    assert 'set nvidia.driver: "570.211.01"' in first.next and "570" not in second.next
    # The flavour alone was another one; a container's driver is its host's; the settings' CUDA needs more; so does the card.
    for wanted in (
        expected(before="580.105.08"),
        expected(before="570.211.01", target="lxc", flavour=None),
        expected(before="570.211.01", cuda="13.0"),
        expected(before="550.163.01", cuda=None),
    ):
        assert not [error for error in errors(wanted, **failed) if "nvidia.driver" in error.next]


def test_different_failures_are_all_told() -> None:
    said = errors(
        expected(driver="590"),
        program=done(TEXTS["no-kernel-image"][0], 1),
        container=done(TEXTS["runtime-not-configured"][0], 125),
    )
    assert len(said) == 3


IMAGE = "docker.io/library/ubuntu@sha256:80dd"


@pytest.mark.parametrize(
    "said",
    [
        'docker: Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
        "docker: Error response from daemon: toomanyrequests: You have reached your unauthenticated pull rate limit.",
        f'Error: initializing source docker://{IMAGE}: pinging container registry registry-1.docker.io: Get "https://registry-1.docker.io/v2/": EOF',
        f'ctr: failed to resolve reference "{IMAGE}": failed to do request: Head "https://registry-1.docker.io/v2/": dial tcp 192.0.2.1:443: i/o timeout',
    ],
)
def test_an_image_that_cannot_be_fetched_is_named_as_not_checked(said: str) -> None:
    output, errors = judge(found(container={"status": 125, "output": f"Unable to find image locally\n{said}"}), *WANTED)
    assert (errors, output["container"]) == ([], None)
    assert [said[-300:] in one for one in output["unchecked"]] == [True]


@pytest.mark.parametrize(
    "said", ["Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "could not select device driver"]
)
def test_an_engine_that_does_not_work_is_still_an_error(said: str) -> None:
    output, errors = judge(found(container={"status": 125, "output": said}), *WANTED)
    assert errors and output["container"] is False and output["unchecked"] == []
