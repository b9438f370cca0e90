"""What runs inside a VM: a Linux of its own, for the guest agent and for those who log in by SSH.

A VM that boots a kernel of its `args` (`direct_boot`) has none of that: what its initramfs runs in is made for that one
boot, in STATE/guests/ID/direct, and nobody can log in to it. What the VM has installed stays as it is meanwhile.

A guest's tree lies in STATE/guests/ID/root. It is installed at the first boot (distribution, kernel, accounts with the
lab's key) and stays until the VM is removed; each boot makes /proc, /sys, /run and /dev anew, with the devices that the
VM was given and its own virtual ones, and a new boot id. Cloud-init's settings reach it at its boots: the name, the
user, the keys. Commands run as those of the host do, in bash's environment with HOMELAB_ROOT, LAB_STATE and a PATH that begins
with the simulated commands, and so see the guest, not the host.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lab.host import boot, dkms, launchers, nvidia, sysfs, units
from lab.host import run as host_run
from lab.host.account_programs import Account, accounts
from lab.host.devices import PciDevice, load_devices
from lab.host.distributions import DISTRIBUTIONS
from lab.host.installed import install_base, note_package
from lab.host.kernel import ModprobeError, RunningKernel, modules_of
from lab.host.kernel_files import write_kernel
from lab.host.modprobe import root_modprobe_config
from lab.host.state import PYTHON_IN_BASH, SHELL_FILE, HostState, of_command_server, of_packages, of_root, own_path
from lab.ports import guest_address
from lab.state import StatePaths

from .direct_boot import boots_directly
from .guest_config import GuestConfig
from .guests import Guest
from .options import parse_properties
from .passthrough import hostpci_options, reservations

_PROGRAMS = (
    "lspci", "uname", "dmesg", "journalctl", "hostname", "mokutil", "systemctl",
    "systemd-run", "reboot", "sudo", "modprobe", "rmmod", "modinfo",
    "df", "mknod", "dd", "setpriv", "stat", "tail", *host_run.OF_PACKAGES,
    "python3",
    "perl",
    "lab-python",
)  # fmt: skip
_FIRST_UID = 1000
# Where QEMU puts devices: behind a root port each on q35, on the one bus of i440fx.
_FIRST_I440FX_SLOT = 0x10


def system_of(guest: Guest) -> HostState:
    """The system that a guest has installed: its tree and what the lab keeps beside it."""
    return HostState(guest.folder)


def has_system(config: GuestConfig) -> bool:
    """Whether a VM boots what it has installed, and that is a Linux: then its agent and its SSH server answer."""
    return is_linux(config) and not boots_directly(config)


def is_linux(config: GuestConfig) -> bool:
    """Whether the lab has a system for it; Windows and Solaris it hasn't."""
    return config.values.get("ostype", "other") in ("l24", "l26", "other")


def is_connected(config: GuestConfig) -> bool:
    """Whether one of the VM's network devices has its cable in."""
    devices = [parse_properties("qemu-net", value) for key, value in config.values.items() if _is_net(key)]
    return any(device.get("link_down", "0") != "1" for device in devices)


def _is_net(key: str) -> bool:
    return key.startswith("net") and key[3:].isdigit()


def user_of(guest: Guest, config: GuestConfig) -> str:
    """The account besides root: cloud-init's user, or the one that the image has."""
    return config.values.get("ciuser") or str(guest.system["user"])


def authorized_keys(system: HostState, user: str) -> str:
    """The keys that let a user in, as in its authorized_keys; none for an account that isn't there."""
    account = accounts(system).get(user)
    return system.read(f"{account.home}/.ssh/authorized_keys", "") if account else ""


def environment_of(system: HostState, user: str) -> dict[str, str]:
    """The environment in which a user's commands run in a guest; nothing of the caller's is in it."""
    account = accounts(system).get(user) or Account(user, 0, 0, "/")
    return {
        **of_root(system.root),
        "LAB_STATE": str(system.state),
        **of_command_server(),
        **of_packages(system.state),
        "HOME": str(system.rooted(account.home)),
        "PATH": f"{own_path(system.root)}:{system.state}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "BASH_ENV": str(system.state / SHELL_FILE),
    }


# -- boot ------------------------------------------------------------------------------------------------------
def booted(guest: Guest) -> HostState:
    """A running guest's system, booted now if it hasn't been since the guest's start, or its reboot from inside."""
    system = system_of(guest)
    if system.running.get("started_at") != guest.system_started:
        _boot(guest, system)
    return system


def _boot(guest: Guest, system: HostState) -> None:
    config = guest.config()
    if not system.rooted("/etc/os-release").exists():
        _install(guest, system, config)
    _cloud_init(guest, system, config)
    kernel = system.kernels()[-1]
    cmdline = f"BOOT_IMAGE=/boot/vmlinuz-{kernel} root=/dev/sda1 ro quiet"
    boot_id = _start_kernel(guest, system, config, kernel, cmdline)
    launchers.write(system.state / "bin", _PROGRAMS)
    (system.state / SHELL_FILE).write_text(PYTHON_IN_BASH, encoding="utf-8")
    version = f"Linux version {kernel} (build@lab) (gcc) {DISTRIBUTIONS[guest.system['distribution']].build}"
    system.write("/proc/version", f"{version}\n")
    system.write("/proc/net/route", _ROUTE)
    running: dict[str, Any] = {
        "started_at": guest.system_started, "boot_id": boot_id, "kernel": kernel, "cmdline": cmdline, "iommu": False,
        "loaded": {}, "drivers": [], "bound": {}, "ids": {}, "units": {},
    }  # fmt: skip
    system.save_running(running)
    (system.state / "dmesg").unlink(missing_ok=True)
    system.kernel_message(version, 0.0)
    system.kernel_message(f"Command line: {cmdline}", 0.0)
    _load_drivers(system, running)
    for unit in units.enabled_services(system):
        once = units.is_oneshot(system, unit)
        state = units.run_service(system, unit, environment_of(system, "root")) if once else "active"
        units.note_state(system, unit, state)


def _load_drivers(system: HostState, running: dict[str, Any]) -> None:
    """What udev and systemd-modules-load do at a boot: drivers for the devices that are there, modules that are listed."""
    kernel = RunningKernel(system, running)
    config, available = root_modprobe_config(system), modules_of(system, running["kernel"])
    kernel.coldplug(config, available)
    for line in boot.modules_to_load(system):
        name, *options = line.split()
        try:
            kernel.load_module(name, config, available, " ".join(options))
        except ModprobeError as error:
            system.kernel_message(f"systemd-modules-load[312]: {error}")
    boot.load_beside_nvidia(system, kernel, config, available)
    kernel.save()
    if "nvidia" in kernel.drivers and nvidia.at_boot(system)[1]:
        nvidia.make_all_nodes(system)


def directly_booted(guest: Guest, kernel: str, cmdline: str) -> HostState:
    """The system of a VM that boots a kernel of its `args`: that kernel's /proc and /sys, made anew, and nothing besides."""
    system = HostState(guest.folder / "direct")
    shutil.rmtree(system.state, ignore_errors=True)
    system.root.mkdir(parents=True)
    _start_kernel(guest, system, guest.config(), kernel, cmdline)
    return system


def _start_kernel(guest: Guest, system: HostState, config: GuestConfig, kernel: str, cmdline: str) -> str:
    """What a kernel shows once it has started: the VM's devices in /sys, its own answers in /proc. Returns the boot's id."""
    boot_id = str(uuid.uuid4())
    _write_machine(guest, system, config)
    sysfs.build(system, sysfs.Running(kernel, cmdline, boot_id, False, False, ""))
    return boot_id


# 192.168.0.1 as gateway, as the host's own.
_ROUTE = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
)


def _install(guest: Guest, system: HostState, config: GuestConfig) -> None:
    """What the image brings, with the lab's key for both accounts: somebody put it there when the guest was set up."""
    wanted = guest.system
    system.log.mkdir(parents=True, exist_ok=True)
    system.write("/etc/hostname", f"{_host_name(guest, config)}\n")
    _write_machine(guest, system, config)
    write_kernel(system, wanted["kernel"])
    for folder in ("etc/sudoers.d", "etc/systemd/system", "tmp", "usr/lib/modules", "var/lib", "var/log", "var/tmp"):
        (system.root / folder).mkdir(parents=True, exist_ok=True)
    system.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    lab_key = Path(f"{StatePaths(guest.host.state).user_key}.pub").read_text(encoding="ascii")
    for user in ("root", user_of(guest, config)):
        _add_user(system, user)
        _authorize(system, user, lab_key)
    distribution = DISTRIBUTIONS[wanted["distribution"]]
    install_base(system, distribution.id, wanted["distribution"])
    note_package(system, f"linux-image-{wanted['kernel']}", "1")
    if wanted.get("mok_enrolled"):  # somebody made it, and confirmed it at the console
        dkms.write_key(system)
    # Last: an installation that was cut short begins again.
    system.write("/etc/os-release", distribution.os_release())


def _cloud_init(guest: Guest, system: HostState, config: GuestConfig) -> None:
    """What cloud-init's settings ask for. It comes to each boot, and adds: what is there stays."""
    values = config.values
    if any("cloudinit" in value for value in values.values() if "media=cdrom" in value):
        system.write("/etc/hostname", f"{_host_name(guest, config)}\n")
    user = user_of(guest, config)
    if "ciuser" in values and user not in accounts(system):
        _add_user(system, user)
        _authorize(system, user, authorized_keys(system, "root"))
    for key in unquote(values.get("sshkeys", "")).splitlines():
        _authorize(system, user, key)


def _host_name(guest: Guest, config: GuestConfig) -> str:
    return guest.name(config).replace(" ", "-")


def _add_user(system: HostState, user: str) -> None:
    """An account with a home, and sudo without a password, as cloud images set up their user."""
    known = accounts(system)
    if user not in known:
        uid = max([_FIRST_UID - 1, *(account.uid for account in known.values())]) + 1
        line = f"{user}:x:{uid}:{uid}::/home/{user}:/bin/bash\n"
        system.write("/etc/passwd", system.read("/etc/passwd") + line)
        sudoers = "/etc/sudoers.d/90-cloud-init-users"
        system.write(sudoers, system.read(sudoers, "") + f"{user} ALL=(ALL) NOPASSWD:ALL\n")
    system.rooted(accounts(system)[user].home).mkdir(parents=True, exist_ok=True)


def _authorize(system: HostState, user: str, keys: str) -> None:
    """Add public keys to those that let a user in."""
    path = f"{accounts(system)[user].home}/.ssh/authorized_keys"
    there = system.read(path, "")
    new = [line for line in keys.splitlines() if line.strip() and line not in there.splitlines()]
    system.write(path, there + "".join(f"{line}\n" for line in new), 0o600)


def _write_machine(guest: Guest, system: HostState, config: GuestConfig) -> None:
    system._machine = _machine(guest, system, config)
    system.save_machine()


def _machine(guest: Guest, system: HostState, config: GuestConfig) -> dict[str, Any]:
    """machine.json of the guest, for the programs that it shares with hosts; `guest` says whose it is."""
    host, values = guest.host.machine, config.values
    uefi = values.get("bios") == "ovmf"
    secure_boot = guest.system["secure_boot"]
    if secure_boot is None:
        efidisk = parse_properties("qemu-efidisk", values["efidisk0"]) if "efidisk0" in values else {}
        secure_boot = efidisk.get("pre-enrolled-keys") == "1"
    devices = guest_devices(guest.host, guest.vmid, config)
    return {
        "version": 1,
        "node": system.read("/etc/hostname", "(none)").strip(),
        "guest": {"vmid": guest.vmid, "lab": str(guest.host.state)},
        "address": guest_address(guest.vmid),
        "pve": host["pve"],
        "mok_enrolled": bool(guest.system.get("mok_enrolled")),
        "power": "on",
        "boots": 0,
        "faults": {},
        "hardware": {
            "cpu": host["hardware"]["cpu"],
            "firmware": {"mode": "uefi" if uefi else "bios", "iommu": False, "secure_boot": uefi and secure_boot},
            "devices": [device._asdict() | {"blocks": [], "nets": []} for device in devices],
            "volumes": [],
        },
        "boot": {"loader": "grub", "esps": []},
        "mounts": [],
        "guests": {},
        "nvidia": None,
    }


# -- devices ---------------------------------------------------------------------------------------------------
def guest_devices(host: HostState, vmid: int, config: GuestConfig) -> list[PciDevice]:
    """The PCI devices that a running VM sees: the machine's own, and those that it was given, at the guest's addresses."""
    q35 = "q35" in config.values.get("machine", "")
    found = [_virtual("0000:00:00.0", "8086", "29c0" if q35 else "1237", "0600", "Host bridge")]
    if config.values.get("vga", "std").partition(",")[0] != "none":
        found.append(_virtual("0000:00:01.0" if q35 else "0000:00:02.0", "1234", "1111", "0300", "QEMU Virtual Video"))
    for number, key in enumerate(k for k in sorted(config.values) if k.startswith("net")):
        found.append(
            _virtual(f"0000:06:{0x12 + number:02x}.0", "1af4", "1000", "0200", f"Virtio network device ({key})")
        )
    hidden = str(host.fault("card-invisible"))
    mine = sorted(address for address, owner in reservations(host).items() if owner == vmid)
    slots = sorted({address[:-2] for address in mine})
    options = list(hostpci_options(config.values).values())
    for number, slot in enumerate(slots):
        on_port = number < len(options) and options[number].get("pcie") == "1"
        where = f"0000:{number + 1:02x}:00" if on_port else f"0000:00:{_FIRST_I440FX_SLOT + number:02x}"
        for device in load_devices(host.machine):
            if device.address == hidden or slot == hidden:
                continue
            if device.address in mine and device.address.startswith(f"{slot}."):
                found.append(_moved(device, where + device.address[-2:]))
    return found


def _virtual(address: str, vendor: str, device: str, pci_class: str, name: str) -> PciDevice:
    return PciDevice(
        address, vendor, device, pci_class, "00", "00", "1af4:1100", name, "Red Hat, Inc.", None, None, None, (), False,
        False, False, None, (), (), (),
    )  # fmt: skip


def _moved(device: PciDevice, address: str) -> PciDevice:
    """A device as the guest sees it: no group, no bridge above."""
    data = device._asdict() | {"address": address, "parent": None, "group": None, "acs_group": None}
    return PciDevice.from_dict(data | {"boot_vga": False, "built_in": False, "blocks": (), "nets": ()})
