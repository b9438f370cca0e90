"""What happens between power-on and a running system: boot loader, kernel, initramfs, root file system.

Only what was generated counts until the root file system is mounted: the command line comes from the boot
loader's configuration, early modules and scripts from the initramfs image. After that /etc counts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import addresses, archive, holders, nvidia, proc, sysfs, sysfs_writes, udev, units
from .bootloader import BootEntry, BootError, choose
from .devices import load_devices
from .kernel import ModprobeError, RunningKernel, modules_of, modules_on_disk
from .modprobe import ModprobeConfig, kernel_words, root_modprobe_config
from .state import HostState, kernel_release
from .storage import unmount_all

#: How long a boot takes.
_SECONDS = 0.3
_SCRIPT_TIMEOUT = 120.0
_GUESTS = "pve-guests.service"

# Sourced in front of each init-top script: `echo` and `printf` do what they do, then let the kernel act on
# what may have been written into sysfs before the next command runs, with its answer as exit status.
_PROLOGUE = """\
echo() { command echo "$@" || return; lab_settle; }
printf() { command printf "$@" || return; lab_settle; }
lab_settle() { command echo settle >&8; read -r lab_answer <&9; [ "$lab_answer" = 0 ] && return 0
command echo "$0: write error: $lab_answer" >&2; return 1; }
"""
_MODPROBE = """\
#!/bin/sh
# The initramfs' modprobe: the kernel that is booting does the work and answers with the exit status.
echo "modprobe $*" >&8
read -r answer <&9
exit "$answer"
"""


@dataclass(frozen=True)
class BootResult:
    """What a boot led to.

    `network`: whether sshd can be reached; `comes_up`: whether the system gets as far as starting services
    (`problem` says why not); `seconds`: how long it takes; `timers`: as `units.enabled_timers` has them.
    """

    boot_id: str
    kernel: str
    entry: str
    cmdline: str
    network: bool
    comes_up: bool
    seconds: float
    timers: list[dict[str, Any]]
    problem: str | None = None


def boot(host: HostState, reason: str, environment: Mapping[str, str]) -> BootResult:
    """Start the host and bring its trees to what a running system shows, up to its guests' start.

    What comes after that is `start_other_services`.

    Args:
        reason: "start", "reboot" or "power".
        environment: that of the host's commands, in which its services run.
    """
    machine = host.machine
    seconds = _SECONDS + float(machine["faults"].get("hang-seconds", 0) or 0)
    (host.state / "dmesg").write_text("", encoding="utf-8")
    boot_id = str(uuid.uuid4())
    try:
        if machine["faults"].get("never-comes-back") and reason == "reboot":
            raise BootError("the machine stays dark (fault never-comes-back)")
        entry = choose(host)
        if _panics(machine, entry) and re.search(r"\bpanic=[1-9]", entry.cmdline):
            entry = choose(host)  # it restarts by itself
        if _panics(machine, entry):
            raise BootError("Kernel panic - not syncing (fault panics-when)")
        _start(host, entry, boot_id, reason, environment)
        result = BootResult(
            boot_id,
            entry.kernel,
            entry.identifier or entry.title,
            entry.cmdline,
            addresses.come_up(host, entry.cmdline),
            True,
            seconds,
            units.enabled_timers(host),
        )
    except BootError as error:
        sysfs.clear(host)
        (host.state / "kernel.json").unlink(missing_ok=True)
        result = BootResult(boot_id, "", "", "", False, False, seconds, [], str(error))
    guests = machine["guests"]
    with host.changing() as now:  # what others changed meanwhile, such as a fault, stays
        now |= {"next_entry": None, "power": "on", "boots": now["boots"] + 1, "guests": guests}
    return result


def _panics(machine: dict[str, Any], entry: BootEntry) -> bool:
    word = machine["faults"].get("panics-when")
    return bool(word) and word in entry.cmdline


def _start(host: HostState, entry: BootEntry, boot_id: str, reason: str, environment: Mapping[str, str]) -> None:
    machine = host.machine
    if entry.initrd is None or not entry.initrd.exists():
        raise BootError("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)")
    running = sysfs.Running(
        entry.kernel,
        entry.cmdline,
        boot_id,
        iommu_active(machine, entry.kernel, entry.cmdline),
        acs_override(entry.cmdline),
        entry.identifier,
    )
    sysfs.build(host, running)
    started = time.time()
    host.save_running({"started_at": started})
    host.write("/proc/stat", f"cpu  0 0 0 0 0 0 0 0 0 0\nbtime {host.clock()}\n")
    _kernel_messages(host, running)
    kernel = RunningKernel(
        host,
        {
            "boot_id": boot_id,
            "kernel": entry.kernel,
            "cmdline": entry.cmdline,
            "started_at": started,
            "iommu": running.iommu,
            "entry": entry.identifier or entry.title,
            "loaded": {},
            "drivers": [],
            "bound": {},
            "ids": {},
            "units": {},
        },
    )
    built_in = [d.driver for d in kernel.devices.values() if d.driver and (d.built_in or d.driver == "pcieport")]
    for driver in dict.fromkeys(built_in):
        kernel.register_driver(driver, None)
    _initramfs(host, kernel, entry.initrd)
    if f"root={machine['boot']['root']}" not in entry.cmdline.replace("root=ZFS=/", "root=ZFS=").split():
        raise BootError(f"ALERT!  root= of the command line is not {machine['boot']['root']}. Dropping to a shell!")
    _root_stage(host, kernel)
    kernel.save()
    if "nvidia" in kernel.drivers and nvidia.at_boot(host)[1]:
        nvidia.make_all_nodes(host)
    _start_first_services(host, reason, environment)


def _kernel_messages(host: HostState, running: sysfs.Running) -> None:
    host.kernel_message(f"Linux version {running.kernel} (build@proxmox)", 0.0)
    host.kernel_message(f"Command line: {running.cmdline}", 0.0)
    clock = 0.03
    for line in sysfs.iommu_messages(host.machine, running, load_devices(host.machine)):
        host.kernel_message(line, clock)
        clock += 0.000113


def iommu_active(machine: dict[str, Any], kernel: str, cmdline: str) -> bool:
    """Whether the kernel puts the IOMMU to work.

    AMD: on by default. Intel: on by default from kernel 6.8 as Proxmox builds it, else with intel_iommu=on;
    of several intel_iommu= the last one that says on or off counts. Firmware switched off: never.
    """
    options: dict[str, list[str]] = {}
    for word in kernel_words(cmdline):
        name, _, value = word.partition("=")
        options.setdefault(name.replace("-", "_"), []).extend(value.split(","))
    if not machine["hardware"]["firmware"]["iommu"] or "off" in options.get("iommu", ()):
        return False
    if machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD":
        return "off" not in options.get("amd_iommu", ())
    said = [option == "on" for option in options.get("intel_iommu", ()) if option in ("on", "off")]
    return said[-1] if said else kernel_release(kernel) >= (6, 8)


def acs_override(cmdline: str) -> bool:
    """Whether pcie_acs_override= asks for downstream ports to be split."""
    return any(w.startswith("pcie_acs_override=") and "downstream" in w for w in cmdline.split())


# -- initramfs -------------------------------------------------------------------------------------------
def _initramfs(host: HostState, kernel: RunningKernel, image: Path) -> None:
    try:
        members = archive.unpack(image.read_bytes())
    except archive.ArchiveError as error:
        raise BootError(f"Initramfs unpacking failed: {error}") from error
    folder = host.state / "initramfs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    archive.extract(members, folder)
    config = ModprobeConfig.read([folder / "etc/modprobe.d"], kernel.data["cmdline"])
    available = modules_on_disk(folder, kernel.data["kernel"])
    early = _EarlyShell(host, kernel, folder, config, available)
    order = folder / "scripts/init-top/ORDER"
    names = (
        re.findall(r'^/scripts/init-top/(\S+) "\$@"', order.read_text(encoding="utf-8"), re.M) if order.exists() else []
    )
    for name in names:
        if name == "udev":
            kernel.coldplug(config, available)
        else:
            early.run(name)
    for line in (folder / "conf/modules").read_text(encoding="utf-8").splitlines():
        if line.strip():
            early.modprobe(line.split())
    host.drain_kmsg()


class _EarlyShell:
    """Runs init-top scripts and answers them in place of the kernel."""

    def __init__(
        self,
        host: HostState,
        kernel: RunningKernel,
        folder: Path,
        config: ModprobeConfig,
        available: set[str],
    ) -> None:
        self.host, self.kernel, self.folder = host, kernel, folder
        self.config, self.available = config, available
        binaries = folder / "lab-bin"
        binaries.mkdir()
        (binaries / "modprobe").write_text(_MODPROBE, encoding="utf-8")
        (binaries / "modprobe").chmod(0o755)
        (folder / "lab-prologue").write_text(_PROLOGUE, encoding="utf-8")

    def run(self, name: str) -> None:
        """One script, as the initramfs' init runs it; its exit status is ignored there too."""
        script = self.folder / "scripts/init-top" / name
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        command = [
            "/bin/sh",
            "-c",
            f'exec 8>/dev/fd/{request_write} 9</dev/fd/{answer_read}; . "$LAB_PROLOGUE"; . "$0"',
            str(script),
        ]
        complaints = self.folder / "lab-stderr"
        with complaints.open("w", encoding="utf-8") as stderr:
            child = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(request_write, answer_read),
                start_new_session=True,
            )
        os.close(request_write)
        os.close(answer_read)
        # A script that hangs would hang a real boot for ever; here it ends, and is reported.
        watchdog = threading.Timer(_SCRIPT_TIMEOUT, os.killpg, (child.pid, signal.SIGKILL))
        watchdog.start()
        try:
            self._serve(request_read, answer_write)
            child.wait()
        finally:
            watchdog.cancel()
        self._settle()
        errors = complaints.read_text(encoding="utf-8", errors="replace")
        for line in errors.splitlines():
            self.host.kernel_message(f"init-top/{name}: {line}")
        if child.returncode != 0:
            self.host.log_program(f"init-top/{name}", [], child.returncode, errors.strip() or None)

    def _serve(self, request_read: int, answer_write: int) -> None:
        """Answer until the script and all that it started have ended."""
        with os.fdopen(request_read, encoding="utf-8") as requests, os.fdopen(answer_write, "wb", 0) as answers:
            for line in requests:
                try:
                    answers.write(f"{self._answer(line.split())}\n".encode())
                except BrokenPipeError:
                    return  # who asked is gone

    def _environment(self) -> dict[str, str]:
        # initramfs-tools sets ROOT to the root device: a script that takes it for a prefix is wrong here too.
        return {
            "PATH": f"{self.folder}/lab-bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "ROOT": self.host.machine["boot"]["root"],
            "HOMELAB_SYSROOT": str(self.host.root),
            "LAB_PROLOGUE": str(self.folder / "lab-prologue"),
            "rootmnt": "/root",
            "DPMS": "",
            "BOOT": "local",
            "quiet": "y",
            "LC_ALL": "C.UTF-8",
        }

    def _answer(self, request: list[str]) -> str:
        if request[:1] == ["modprobe"]:
            return str(self.modprobe(request[1:]))
        refused = self._settle()
        return os.strerror(refused) if refused else "0"

    def modprobe(self, words: list[str]) -> int:
        """modprobe inside the initramfs: exit status 0 or 1; what failed is in dmesg."""
        status = 0
        names = [w for w in words if not w.startswith("-")]
        several = any(w.startswith("-") and not w.startswith("--") and "a" in w for w in words) or "--all" in words
        jobs = [(n, "") for n in names] if several else [(names[0], " ".join(names[1:]))] if names else []
        for name, arguments in jobs:
            try:
                self.kernel.load_module(name, self.config, self.available, arguments)
            except ModprobeError as error:
                self.host.kernel_message(str(error))
                status = 1
        return status

    def _settle(self) -> int:
        """Act on what was written into control files of the PCI bus; 0, or the errno of a refused write."""
        refused = 0
        for name, value in sysfs_writes.taken(self.kernel):
            if code := self.kernel.write(name, value):
                refused = code
                sysfs_writes.note_refusal(self.host, name, value, code)
        self.host.drain_kmsg()
        return refused


# -- root file system ------------------------------------------------------------------------------------
def _root_stage(host: HostState, kernel: RunningKernel) -> None:
    """systemd: modules-load, then udev's coldplug. (The two race on a real host; this order is the usual one.)"""
    config = root_modprobe_config(host)
    available = modules_of(host, kernel.data["kernel"])
    for line in modules_to_load(host):
        words = line.split()
        if words[0].replace("-", "_") in config.blacklist:
            continue
        try:
            kernel.load_module(words[0], config, available, " ".join(words[1:]))
        except ModprobeError:
            host.kernel_message(f"systemd-modules-load[312]: Failed to find module '{words[0]}'")
    kernel.coldplug(config, available, udev.rules(host.root))
    _load_overrides(host, kernel, config, available)
    kvm = "kvm_amd" if host.machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD" else "kvm_intel"
    for module in (kvm, *(("zfs",) if host.machine["boot"]["root"].startswith("ZFS=") else ())):
        kernel.load_module(module, config, available)
    load_beside_nvidia(host, kernel, config, available)


def _load_overrides(host: HostState, kernel: RunningKernel, config: ModprobeConfig, available: set[str]) -> None:
    """driverctl's units, which udev starts for each function that has a file (driverctl 0.115, set_override): the driver that has
    the function lets go of it, whoever gave it to that.
    """
    for address in kernel.devices:
        driver = host.read(f"/etc/driverctl.d/pci-{address}", "").strip()
        if not driver:
            continue
        if driver != "none":
            try:
                kernel.load_module(driver, config, available)
            except ModprobeError:
                host.kernel_message(f"driverctl[412]: driverctl: no such module: {driver}")
                continue
        if address in kernel.bound:
            kernel.write(f"drivers/{kernel.bound[address]}/unbind", address)
        (kernel.device_folder(address) / "driver_override").write_text(f"{driver}\n", encoding="utf-8")
        if driver != "none":
            kernel.write("drivers_probe", address)


def load_beside_nvidia(host: HostState, kernel: RunningKernel, config: ModprobeConfig, available: set[str]) -> None:
    """nvidia-uvm, where something loads it when the driver has come."""
    if nvidia.at_boot(host)[0] and "nvidia" in kernel.drivers and "nvidia_uvm" in available:
        kernel.load_module("nvidia_uvm", config, available)


def modules_to_load(host: HostState) -> list[str]:
    """Lines of /etc/modules and modules-load.d, in systemd-modules-load's order."""
    files: dict[str, Path] = {}
    for folder in ("etc/modules-load.d", "usr/lib/modules-load.d"):
        base = host.root / folder
        for path in base.iterdir() if base.is_dir() else []:
            # /etc/modules-load.d/modules.conf is a link to ../modules on Debian.
            if path.suffix == ".conf" and (path.exists()):
                files.setdefault(path.name, path)
    lines = []
    for name in sorted(files):
        for raw in files[name].read_text(encoding="utf-8").splitlines():
            line = raw.strip()
            if line and line[0] not in "#;":
                lines.append(line)
    return lines


def _start_first_services(host: HostState, reason: str, environment: Mapping[str, str]) -> None:
    """Enabled services that are ordered before pve-guests.service, then that one: which guests are to run."""
    first, _ = _services(host)
    failed = {name for name in first if _run_service(host, name, environment) == "failed"}
    if broken := failed & units.required_by(host, _GUESTS):
        host.kernel_message(f"systemd[1]: Dependency failed for {_GUESTS}: {', '.join(sorted(broken))}")
        units.note_state(host, _GUESTS, "inactive")
    else:
        _start_guests(host, reason)


def start_other_services(host: HostState, environment: Mapping[str, str]) -> None:
    """Enabled services that nothing orders before the guests: they find these started, or not."""
    _, others = _services(host)
    for name in others:
        _run_service(host, name, environment)


def _services(host: HostState) -> tuple[list[str], list[str]]:
    """Enabled services: those before pve-guests.service, and the others."""
    services = units.enabled_services(host)
    first = [name for name in services if _GUESTS in units.orderings(host, name, "Before")]
    return first, [name for name in services if name not in first]


def _run_service(host: HostState, unit: str, environment: Mapping[str, str]) -> str:
    try:
        state = units.run_service(host, unit, environment)
    except units.UnitError as error:
        host.kernel_message(f"systemd[1]: {error}")
        state = "failed"
    units.note_state(host, unit, state)
    if state == "failed":
        host.kernel_message(f"systemd[1]: Failed to start {unit}.")
    return state


def _start_guests(host: HostState, reason: str) -> None:
    for identifier, guest in host.machine["guests"].items():
        guest["running"] = bool(guest["at_start"] if reason == "start" else guest["onboot"])
        guest.update(started_at=None, restarted_at=None)  # with the host
        if guest["running"]:
            mark_running(host, identifier, True)


def mark_running(host: HostState, identifier: str, running: bool) -> None:
    """The pid file by which a running guest is known, and its process in /proc: kvm, or a container's init."""
    guest = host.machine["guests"][identifier]
    is_vm, pid = guest["kind"] == "vm", 20000 + int(identifier)
    path = host.root / ("run/qemu-server" if is_vm else "run/lxc") / f"{identifier}.pid"
    if not running:
        path.unlink(missing_ok=True)
        proc.remove(host, pid)
        holders.update(host)
        return
    sysfs.put(path, f"{pid}\n")
    if is_vm:
        proc.put(
            host, pid, "kvm", f"/usr/bin/kvm -id {identifier} -name {guest['name']}", f"/qemu.slice/{identifier}.scope"
        )
    else:
        proc.put(host, pid, "systemd", "/sbin/init", f"/lxc/{identifier}/ns/init.scope")
    holders.update(host)


def shutdown(host: HostState) -> None:
    """Stop the guests and forget the running system."""
    with host.changing() as machine:
        machine["power"] = "off"
        for guest in machine["guests"].values():
            guest["running"] = False
            guest.pop("process", None)
    unmount_all(host)
    one_shot = sysfs.take_one_shot(host)
    with host.changing_running() as running:  # a write into sysfs that still waits shows nothing of it any more
        sysfs.clear(host)
        running.clear()
    if one_shot:  # the firmware keeps it
        sysfs.set_one_shot(host, one_shot)
