"""NVIDIA's stack on the lab's systems: which module loads where, and what is said when one doesn't."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from homelab.facts.kernel_log import since_loaded
from homelab.symptoms import recognise
from lab.host import nvidia
from lab.host.state import HostState
from lab.stock import without_subscription
from tests.lab.guest_kit import NODES, Vm, emptied, other_card, scenario
from tests.lab.host_kit import Host

KEYRING = (
    "curl -fsSLo /root/k.deb https://developer.download.nvidia.com/compute/cuda/repos/{}/x86_64/cuda-keyring_1.1-1_all.deb"
    " && dpkg -i /root/k.deb && apt-get -qq update"
)
HEADERS = "apt-get -qq update && apt-get -qq install -y linux-headers-$(uname -r)"
OPEN = "apt-get -qq install -y nvidia-driver-580-open"
PROGRAM = (
    "#include <cstdio>\\n__global__ void k() {}\\nint main() { k<<<1, 1>>>(); return cudaDeviceSynchronize(); }\\n"
)
RUN = "https://us.download.nvidia.com/tesla/{0}/NVIDIA-Linux-x86_64-{0}.run"
QUERY = "nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader"


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    """A VM with an RTX 5090 and Ubuntu 24.04."""
    return Vm(tmp_path)


# -- from packages to a container ------------------------------------------------------------------------------
def test_docker_knows_the_runtime_once_it_was_restarted_and_after_each_boot(vm: Vm) -> None:
    """What comes before that, and a CUDA program: tests/lab/test_nvidia_stack.py."""
    vm.output(KEYRING.format("ubuntu2404"))
    vm.output(f"apt-get -qq install -y linux-headers-$(uname -r) && {OPEN}")
    vm.reboot()
    assert "/dev/nvidia-uvm character special file\n" in vm.output("stat -c '%n %F' $HOMELAB_ROOT/dev/nvidia*").replace(
        str(vm.root), ""
    )
    vm.output(
        "apt-get -qq install -y docker.io nvidia-container-toolkit && nvidia-ctk runtime configure --runtime=docker"
    )
    run = "docker run --rm --runtime=nvidia --gpus all nvidia/cuda:12.8.1-base-ubuntu24.04 nvidia-smi -L"
    assert "unknown or invalid runtime name: nvidia" in vm.refusal(run, 125), "docker hasn't been restarted"
    vm.output("systemctl restart docker")
    assert vm.output(run).startswith("GPU 0: NVIDIA GeForce RTX 5090")
    vm.reboot()
    assert vm.output(run).startswith("GPU 0: NVIDIA GeForce RTX 5090")


@pytest.mark.parametrize(
    ("distribution", "version"),
    # NVIDIA's repository for Ubuntu 26.04 has no 580: it comes from Ubuntu's own.
    [
        ("ubuntu-22.04", "580.178.04"),
        ("ubuntu-26.04", "580.173.02"),
        ("debian-12", "580.178.04"),
        # Nor has the one for Debian 13, and Debian itself has 550.
        ("debian-13", "595.71.05"),
    ],
)
def test_the_driver_on_other_distributions(tmp_path: Path, distribution: str, version: str) -> None:
    vm = Vm(tmp_path, scenario(vm={"distribution": distribution}))
    vm.output(KEYRING.format(distribution.replace("-", "").replace(".", "")))
    packages = (
        OPEN
        if "ubuntu" in distribution
        else f"apt-get -qq install -y nvidia-driver-pinning-{version[:3]} && apt-get -qq install -y nvidia-kernel-open-dkms nvidia-driver-cuda"
    )
    vm.output(f"apt-get -qq install -y linux-headers-$(uname -r) && {packages}")
    vm.reboot()  # with Linux 7.0 nouveau has the card until then
    assert f", {version}, 12.0\n" in vm.output(QUERY)


# -- modules ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("device", "generation"),
    [("1b80", "Pascal"), ("1db6", "Volta"), ("1e81", "Turing"), ("2182", "Turing"), ("2204", "Ampere"), ("2684", "Ada"), ("2b85", "Blackwell"),
     ("2d04", "Blackwell"), ("2330", "Hopper"), ("13c2", "Maxwell")],
)  # fmt: skip
def test_generations_by_device_id(vm: Vm, device: str, generation: str) -> None:
    assert nvidia.generation_of(HostState(vm.host.machine.state), device)["name"] == generation


def test_without_headers_nothing_is_built(vm: Vm) -> None:
    text = vm.output("apt-get -qq update && apt-get install -y --no-install-recommends nvidia-driver-580-open")
    assert "was skipped since the\nkernel headers for this kernel do not seem to be installed" in text
    assert vm.output("dkms status") == "nvidia/580.173.02: added\n"
    assert "Module nvidia not found in directory /lib/modules/6.8.0-86-generic" in vm.refusal("modprobe nvidia", 1)
    assert "couldn't communicate with the NVIDIA driver" in vm.refusal("nvidia-smi", 9)
    vm.output("apt-get -qq install -y linux-headers-$(uname -r) && modprobe nvidia && nvidia-smi")


def test_blackwell_with_proprietary_modules_has_no_devices(vm: Vm) -> None:
    vm.output(f"{HEADERS} && apt-get -qq install -y nvidia-driver-580 && modprobe nvidia")
    assert vm.refusal("nvidia-smi", 6) == "No devices were found\n"
    log = vm.output("dmesg -t")
    assert "NVRM: installed in this system requires use of the NVIDIA open kernel modules." in log
    assert "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x22:0x56:884)" in log
    assert vm.output("modinfo -F license nvidia") == "NVIDIA\n"


def test_a_branch_before_the_card_isnt_for_it(vm: Vm) -> None:
    vm.output(f"{HEADERS} && apt-get -qq install -y nvidia-driver-535-open")
    assert "could not insert 'nvidia': No such device" in vm.refusal("modprobe nvidia", 1)
    log = vm.output("dmesg -t")
    assert "NVRM: installed in this system is not supported by the\nNVRM: NVIDIA 535.309.01 driver release." in log
    assert "NVRM: None of the NVIDIA devices were initialized." in log


def test_a_branch_that_has_dropped_the_card_ignores_it(tmp_path: Path) -> None:
    """As real owners post it; and the program names the cause."""
    vm = Vm(tmp_path, scenario(pci=other_card("1b80")))
    vm.output(KEYRING.format("ubuntu2404"))
    vm.output(f"{HEADERS} && apt-get -qq install -y nvidia-driver")
    vm.reboot()
    assert "could not insert 'nvidia': No such device" in vm.refusal("modprobe nvidia", 1)
    log = vm.output("dmesg")
    assert re.search(r"GPU installed in this system is\n\[ .*NVRM:  supported through the NVIDIA 580\.xx Legacy", log)
    (error,) = recognise(log + vm.refusal("nvidia-smi", 9))
    assert "dropped the card's generation" in error.why


@pytest.mark.parametrize(
    ("device", "driver", "loads"),
    [
        ("1b80", "nvidia-driver-580-open", False),
        ("1b80", "nvidia-driver-580", True),
        ("1e81", "nvidia-driver-580-open", True),
    ],
)
def test_open_modules_are_for_turing_and_later(tmp_path: Path, device: str, driver: str, loads: bool) -> None:
    vm = Vm(tmp_path, scenario(pci=other_card(device)))
    vm.output(f"{HEADERS} && apt-get -qq install -y {driver}")
    vm.reboot()
    assert (vm.run("nvidia-smi").returncode == 0) == loads
    if not loads:
        assert "not supported by open\nNVRM: nvidia.ko because it does not include the required GPU" in vm.output(
            "dmesg -t"
        )


def test_nouveau_has_the_card_until_a_reboot(tmp_path: Path) -> None:
    vm = Vm(tmp_path, scenario(pci=other_card("2684", name="AD102 [GeForce RTX 4090]")))
    assert "nouveau" in vm.output("lspci -nnk -s 01:00.0")
    vm.output(f"{HEADERS} && {OPEN}")
    assert "No such device" in vm.refusal("modprobe nvidia", 1)
    assert "NVRM: No NVIDIA devices probed." in vm.output("dmesg -t")
    vm.reboot()
    assert vm.output(QUERY).startswith("NVIDIA GeForce RTX 4090, ")
    assert "nouveau" not in vm.output("cat $HOMELAB_ROOT/proc/modules")


def test_without_a_card_the_module_goes_again(tmp_path: Path) -> None:
    vm = Vm(tmp_path, card=False)
    vm.output(f"{HEADERS} && {OPEN}")
    assert "No such device" in vm.refusal("modprobe nvidia", 1)
    assert "NVRM: No NVIDIA GPU found." in vm.output("dmesg -t")


def test_secure_boot_takes_signed_modules_alone(tmp_path: Path) -> None:
    vm = Vm(tmp_path, scenario(vm={"secure-boot": True}))
    assert vm.output("mokutil --sb-state") == "SecureBoot enabled\n"
    vm.output(f"{HEADERS} && {OPEN}")
    text = vm.refusal("modprobe nvidia", 1)
    assert text == "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service\n"
    assert "is not enrolled" in vm.run("mokutil --test-key /var/lib/dkms/mok.pub").stdout
    vm.output(
        "apt-get -qq purge -y nvidia-dkms-580-open && apt-get -qq install -y linux-modules-nvidia-580-open-$(uname -r) && modprobe nvidia"
    )


def test_an_enrolled_key_lets_the_modules_in(tmp_path: Path) -> None:
    vm = Vm(tmp_path, scenario(vm={"secure-boot": True, "mok-enrolled": True}))
    vm.output(f"{HEADERS} && {OPEN} && modprobe nvidia && nvidia-smi")


def test_a_build_that_fails_leaves_the_package_half_configured(vm: Vm) -> None:
    vm.fault("dkms-fails", "6.8.0-86")
    vm.output(HEADERS)
    text = vm.refusal(OPEN, 100)
    assert "Error! Bad return status for module build on kernel: 6.8.0-86-generic (x86_64)" in text
    assert "E: Sub-process /usr/bin/dpkg returned an error code (1)" in text
    assert vm.output("dpkg-query -W -f='${Status}' nvidia-dkms-580-open") == "install ok half-configured"
    assert "error: implicit declaration" in vm.output("cat $HOMELAB_ROOT/var/lib/dkms/nvidia/580.173.02/build/make.log")
    assert "returned an error code (1)" in vm.refusal("apt-get install -y jq", 100), (
        "it is tried again, and fails again"
    )
    vm.fault("dkms-fails", None)
    vm.output("dpkg --configure -a && modprobe nvidia && nvidia-smi")


def test_an_upgrade_doesnt_fit_the_loaded_module(vm: Vm) -> None:
    old = "580.159.03-0ubuntu0.24.04.1"
    vm.output(HEADERS)
    vm.output(
        f"printf 'Package: *nvidia*\\nPin: version {old}\\nPin-Priority: 1001\\n' >$HOMELAB_ROOT/etc/apt/preferences.d/nvidia && {OPEN}"
    )
    vm.reboot()
    vm.output("nvidia-smi && rm $HOMELAB_ROOT/etc/apt/preferences.d/nvidia && apt-get -qq dist-upgrade -y")
    text = vm.refusal("nvidia-smi", 18)
    assert text == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.173\n"
    vm.output("rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && modprobe nvidia")
    assert "580.173.02" in vm.output(QUERY)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("0x62:0x40:2168", "RmInitAdapter failed! (0x62:0x40:2168)"),
        ("79", "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."),
        ("119", "NVRM: Xid (PCI:0000:01:00): 119, Timeout after 6s of waiting for RPC response from GPU0 GSP!"),
    ],
)
def test_a_card_that_doesnt_come_up(vm: Vm, value: str, line: str) -> None:
    """It is back once the fault is gone, and the program takes no line of before for one of the module that is loaded then."""
    vm.output(f"{HEADERS} && {OPEN} && modprobe nvidia")
    vm.fault("gpu-fails", value)
    assert "No devices were found" in vm.refusal("nvidia-smi", 6)
    assert line in "\n".join(since_loaded(vm.output("dmesg -t")))
    vm.fault("gpu-fails", None)
    vm.output("rmmod nvidia_drm nvidia_modeset; rmmod nvidia_uvm; rmmod nvidia; modprobe nvidia && nvidia-smi")
    assert line not in "\n".join(since_loaded(vm.output("dmesg -t")))


# -- CUDA ------------------------------------------------------------------------------------------------------
@pytest.fixture
def compiler(vm: Vm) -> Vm:
    """The VM with a driver and CUDA 12.8, and a program's source in /root/t.cu."""
    vm.output(f"{KEYRING.format('ubuntu2404')} && apt-get -qq install -y linux-headers-$(uname -r) && {OPEN}")
    vm.output(
        f"apt-get -qq install -y cuda-toolkit-12-8 && modprobe nvidia && printf '{PROGRAM}' >$HOMELAB_ROOT/root/t.cu"
    )
    return vm


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("s/int main/int other/", "undefined reference to `main'"),
        ("s/cstdio/no_such.h/", "no_such.h: No such file"),
        ("s/return.*//", 'expected a "}"'),
    ],
)
def test_nvcc_reads_its_source(compiler: Vm, change: str, words: str) -> None:
    compiler.output(f"sed -i '{change}' $HOMELAB_ROOT/root/t.cu")
    assert words in compiler.refusal("$HOMELAB_ROOT/usr/local/cuda/bin/nvcc -o /root/t /root/t.cu")


@pytest.mark.parametrize("options", ["-arch=sm_89", "-arch=sm_120", ""])
def test_code_for_an_older_card_is_translated(compiler: Vm, options: str) -> None:
    compiler.output(f"$HOMELAB_ROOT/usr/local/cuda/bin/nvcc {options} -o /root/t /root/t.cu && $HOMELAB_ROOT/root/t")


def test_a_program_needs_uvm_and_the_drivers_library(compiler: Vm) -> None:
    compiler.output("$HOMELAB_ROOT/usr/local/cuda/bin/nvcc -arch=sm_120 -o /root/t /root/t.cu")
    compiler.output(
        "rm $HOMELAB_ROOT/usr/lib/modules/*/updates/dkms/nvidia-uvm.ko; rmmod nvidia_uvm; rm -f $HOMELAB_ROOT/dev/nvidia-uvm*"
    )
    compiler.output("nvidia-smi")
    assert "CUDA error 999" in compiler.refusal("$HOMELAB_ROOT/root/t", 1)


def test_an_unknown_architecture_is_refused(compiler: Vm) -> None:
    compiler.output("apt-get -qq install -y cuda-toolkit-12-6")
    text = compiler.refusal("$HOMELAB_ROOT/usr/local/cuda-12.6/bin/nvcc -arch=sm_120 -o /root/t /root/t.cu")
    assert "Unsupported gpu architecture 'compute_120'" in text


def test_the_toolkit_brings_no_driver_and_the_meta_does(vm: Vm) -> None:
    vm.output(KEYRING.format("ubuntu2404"))
    simulated = vm.output("apt-get install -s --no-install-recommends cuda-toolkit-12-8")
    assert "Inst cuda-nvcc-12-8" in simulated and not re.search(
        "^Inst .*nvidia", simulated.replace("nvidia.com", ""), re.M
    )
    assert "Inst cuda-drivers" in vm.output("apt-get install -s cuda-12-8")


# -- a container -----------------------------------------------------------------------------------------------
@pytest.fixture
def phoenix(tmp_path: Path) -> Host:
    """A host with driver 580 and container 901, which has its nodes and nothing installed."""
    return emptied(Host(tmp_path, "phoenix", running=True), 901, *NODES)


def inside(host: Host, script: str) -> str:
    """What a script in container 901 prints."""
    return host.output(f"pct exec 901 -- bash -c '{script}'")


def repository_of(host: Host) -> str:
    """NVIDIA's repository for container 901."""
    return "debian13" if "debian" in inside(host, "cat $HOMELAB_ROOT/etc/os-release") else "ubuntu2404"


def test_the_installers_userspace_in_a_container_is_the_hosts_version(phoenix: Host) -> None:
    version = phoenix.output("cat $HOMELAB_ROOT/sys/module/nvidia/version").strip()
    other = "580.159.03"
    install = "sh $HOMELAB_ROOT/root/d.run --silent --no-kernel-modules --no-questions"
    assert version != other
    assert phoenix.run("pct exec 901 -- nvidia-smi").returncode == 127
    inside(phoenix, f"curl -fsSLo /root/d.run {RUN.format(other)}")
    assert "Unable to find the module utility" in phoenix.run(f"pct exec 901 -- bash -c '{install}'").stderr
    inside(phoenix, f"apt-get -qq update; apt-get -qq install -y kmod; {install}")
    refused = phoenix.run("pct exec 901 -- nvidia-smi")
    assert refused.returncode == 18 and "Driver/library version mismatch" in refused.stderr
    inside(phoenix, f"curl -fsSLo /root/d.run {RUN.format(version)}; {install}")
    assert version in inside(phoenix, "nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    inside(phoenix, "nvidia-uninstall")
    assert phoenix.run("pct exec 901 -- nvidia-smi").returncode == 127


def test_a_cuda_program_in_a_container_needs_uvm(phoenix: Host) -> None:
    version = phoenix.output("cat $HOMELAB_ROOT/sys/module/nvidia/version").strip()
    inside(phoenix, f"apt-get -qq update; apt-get -qq install -y kmod; curl -fsSLo /root/d.run {RUN.format(version)}")
    inside(phoenix, "sh $HOMELAB_ROOT/root/d.run --silent --no-kernel-modules")
    inside(phoenix, KEYRING.format(repository_of(phoenix)) + "; apt-get -qq install -y cuda-toolkit-13-0")
    (phoenix.root.parent / "guests/901/root/root/t.cu").write_text(PROGRAM.replace("\\n", "\n"))
    inside(phoenix, "$HOMELAB_ROOT/usr/local/cuda/bin/nvcc -o /root/t /root/t.cu")
    assert inside(phoenix, "$HOMELAB_ROOT/root/t").endswith("Result = PASS\n")
    phoenix.output("pct stop 901; sed -i /nvidia-uvm/d $HOMELAB_ROOT/etc/pve/lxc/901.conf; pct start 901")
    assert "CUDA error 999" in phoenix.run("pct exec 901 -- bash -c '$HOMELAB_ROOT/root/t'").stderr


def test_control_groups_are_the_legacy_hooks_business(phoenix: Host) -> None:
    inside(phoenix, "apt-get -qq update; apt-get -qq install -y docker.io kmod")
    inside(phoenix, KEYRING.format(repository_of(phoenix)) + "; apt-get -qq install -y nvidia-container-toolkit")
    version = phoenix.output("cat $HOMELAB_ROOT/sys/module/nvidia/version").strip()
    libraries = phoenix.root.parent / "guests/901/root/usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True, exist_ok=True)
    for stem in ("libnvidia-ml.so", "libcuda.so"):
        (libraries / f"{stem}.{version}").touch()
    inside(phoenix, "nvidia-ctk runtime configure --runtime=docker; systemctl restart docker")
    refused = phoenix.run("pct exec 901 -- docker run --rm --gpus all ubuntu nvidia-smi -L")
    assert (
        refused.returncode == 125
        and "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted" in refused.stderr
    )
    inside(phoenix, "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
    assert "GPU 0:" in inside(phoenix, "docker run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi -L")


@pytest.mark.parametrize(
    ("lxc", "conf", "starts"),
    [
        ("6.0.5-3", "", True),
        ("6.0.4-2", "", False),
        ("6.0.5-3", "s/^features:.*//", False),
        ("6.0.4-2", "$a lxc.apparmor.profile: unconfined", True),
    ],
)
def test_docker_in_a_container_starts_what_the_hosts_apparmor_lets_it(
    phoenix: Host, lxc: str, conf: str, starts: bool
) -> None:
    phoenix.output(
        f"sed -i '/^Package: lxc-pve$/,/^$/s/^Version: .*/Version: {lxc}/' $HOMELAB_ROOT/var/lib/dpkg/status"
    )
    assert phoenix.output("dpkg-query -W -f='${Version}' lxc-pve") == lxc
    phoenix.output(f"pct stop 901; sed -i '{conf}' $HOMELAB_ROOT/etc/pve/lxc/901.conf; pct start 901")
    inside(phoenix, "apt-get -qq update; apt-get -qq install -y docker.io")
    done = phoenix.run("pct exec 901 -- docker run --rm ubuntu true")
    assert (done.returncode == 0) is starts
    assert ("ip_unprivileged_port_start file: reopen fd 8: permission denied" in done.stderr) is not starts


# -- the host --------------------------------------------------------------------------------------------------
@pytest.fixture
def mixed(tmp_path: Path) -> Host:
    """A Proxmox VE 9 host without a driver and without a subscription."""
    host = Host(tmp_path, "rtx5090", running=True)
    without_subscription(host.root)
    host.output(KEYRING.format("debian13"))
    return host


def test_the_driver_on_the_host(mixed: Host) -> None:
    mixed.output(
        "apt-get -qq install -y proxmox-headers-6.17.2-1-pve proxmox-headers-6.14.11-4-pve nvidia-driver-pinning-595"
    )
    mixed.output(
        "apt-get -qq install -y --no-install-recommends nvidia-kernel-open-dkms nvidia-driver-cuda && update-initramfs -u -k all"
    )
    assert mixed.output("dkms status").count(": installed") == 2
    mixed.reboot()
    assert mixed.output(QUERY) == "NVIDIA GeForce RTX 5090, 595.71.05, 12.0\n"
    assert mixed.driver("0000:01:00.0") == "nvidia"


def test_debians_own_driver_doesnt_build_for_a_new_kernel(mixed: Host) -> None:
    mixed.output("apt-get -qq install -y proxmox-headers-6.17.2-1-pve")
    # It is in non-free, which no new system takes.
    assert "nvidia-smi" not in mixed.output("apt-cache pkgnames nvidia-").split()
    mixed.output(
        "sed -i 's/^Components: main contrib/& non-free/' $HOMELAB_ROOT/etc/apt/sources.list.d/proxmox.sources"
    )
    mixed.output("apt-get -qq update")
    done = mixed.run(
        "apt-get install -y nvidia-kernel-dkms=550.163.01-2 nvidia-kernel-support=550.163.01-2 --allow-downgrades"
    )
    assert done.returncode == 100 and "Bad return status for module build on kernel: 6.17.2-1-pve" in done.stdout


def test_the_scenarios_driver_is_installed_packages(tmp_path: Path) -> None:
    host = Host(tmp_path, "phoenix", running=True)
    version = host.output("cat $HOMELAB_ROOT/sys/module/nvidia/version").strip()
    assert host.output("dpkg-query -W -f='${Version}' nvidia-driver-cuda") == f"{version}-1"
    assert f"nvidia/{version}, " in host.output("dkms status")
    host.output(f"{KEYRING.format('debian13')} && apt-get -qq install -y nvidia-driver-pinning-595")
    host.output("apt-get -qq install -y nvidia-driver-cuda nvidia-kernel-open-dkms && apt-get -qq dist-upgrade -y")
    assert "Driver/library version mismatch" in host.run("nvidia-smi").stderr
    host.reboot()
    assert "595.71.05" in host.output("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
