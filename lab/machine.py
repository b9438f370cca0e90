"""The simulated machine: a scenario installed in a state folder, that can be booted, shut down and tampered with.

What happens inside is lab.host's (kernel model, boot loaders, commands); who talks to it over SSH and when it
boots is the daemon's business (lab.server).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from lab import kept, network, quick_yaml
from lab.host import boot as booting
from lab.host import contents, dkms, holders, kernel_files, launchers, nvidia
from lab.host.boot import BootResult
from lab.host.bootloader import write_grubenv
from lab.host.dpkg import forget, installed
from lab.host.grub import mkconfig
from lab.host.initramfs import build_image
from lab.host.installed import install_headers, note_package
from lab.host.network import FAULTS as NETWORK_FAULTS
from lab.host.program import Failure
from lab.host.proxmox_boot import sync
from lab.host.run import GUEST_ONLY, PROGRAMS
from lab.host.state import PYTHON_IN_BASH, SHELL_FILE, HostState, host_environment
from lab.host.sysfs_writes import SHELL_TEXT
from lab.scenario import Scenario
from lab.state import kill_group
from lab.stock import write_stock_tree

#: Faults by name: what their value may be, and what it does. Set in a scenario, by `python -m lab fault`, or in tests.
FAULTS = {
    "update-initramfs": "fail or fail:KERNEL: mkinitramfs fails, for every kernel or that one",
    "update-grub": "fail: the tool fails",
    "proxmox-boot-tool": "fail: the tool fails",
    "esp-bytes": "bytes: how much an ESP holds: of a file beyond that its beginning is there, and `proxmox-boot-tool` ends with 1",
    "grub-cannot-write": "true: GRUB can't write its environment",
    "panics-when": "a part of a command line: a boot with it ends in a kernel panic",
    "never-comes-back": "true: the next reboot ends in darkness",
    "no-network-when": "a part of a command line: a boot with it comes up without its network: its bridge is down",
    "hang-seconds": "seconds: a boot takes longer",
    "timers-run-fast": "a number, such as 15: the host's timers elapse that many times as fast",
    "script-hangs": "a part of a script: one that is started while this is set never gets to its end, in guests too; its first line comes",
    "task-fails": "TYPE or TYPE=STATUS: such as `qmstart=out of memory`: tasks of that type end with that exit status",
    "task-seconds": "seconds: every task takes that much longer",
    "download-seconds": "seconds: a download that the API starts takes so long, with half of it written",
    "api-answers": "[METHOD ]PART OF PATH=STATUS REASON: requests that have it in them are answered so, and not carried out",
    "api-drops": "[METHOD ]PART OF PATH: the request is carried out, its answer lost with the connection",
    "api-loses": "[METHOD ]PART OF PATH=NUMBER: that many requests are lost with their connections, and not carried out",
    "api-holds": "[METHOD ]PART OF PATH: the request is carried out, its answer held back for as long as this is set",
    "api-seconds": "seconds: every answer comes that much later",
    "clock-ahead": "seconds, below 0 for behind: the host's clock, as Proxmox VE reads it, is that much ahead of this machine's: tickets expire, tasks have its times",
    "stopall-clock": "seconds: once a host that goes down has begun to shut its guests down, its clock is set by so much",
    "foreign-change": "a number: that many changes of a guest find that somebody else has changed it just before",
    "config-lock": "a number: that many changes and tasks of guests find the configuration's lock held by another process",
    "no-quorum": "true: the node has lost the cluster's quorum: it writes nothing below /etc/pve; its own shell's `>` isn't held off",
    "guest-ignores-shutdown": "true, or a guest's id: a shutdown runs into its time limit",
    "reset-fails": "true, or a part of an address: each reset of that device fails (ENOTTY), which a VM's start says in its task's log, and nothing else",
    "drm-order": "a list of PCI addresses: from the next boot on, these cards have card0 and renderD128, card1 and renderD129 … in this order, in place of the scenario's `drm`",
    "nvidia-majors-change": "true: at every boot, nvidia-uvm and nvidia-caps get other majors",
    "guest-unreachable": "true, or a VM's id: the VM runs, its agent answers, but it is out of the network: SSH connections are refused, open ones break",
    "guest-boot-hangs": "true, or a VM's id: a VM that boots a kernel of its `args` is started, and nothing comes on its console",
    "power-cut": "true: the host goes down without stopping its guests: no hookscript is run",
    "card-users": 'a list of objects: programs that use cards: {"pid": 4711, "comm": "ollama", "container": 901}; lab/host/holders.py has every key',
    "nvidia-unbind-forever": "true: NVIDIA's driver never lets go of a card, whoever holds it: the write doesn't return",
    "card-dead": "a part of an address: that card answers no more: its configuration space reads as ones, NVIDIA's driver doesn't take it",
    "reset-kills": "a part of an address: that card is dead from the end of the next VM that has it until the host's boot",
    "card-invisible": "an address, such as 0000:01:00.0 or 0000:01:00: VMs that are given that function, or slot, don't see it inside",
    **NETWORK_FAULTS,
}


#: The simulated commands that a host has.
OF_HOST = frozenset(PROGRAMS) - GUEST_ONLY


class MachineError(Exception):
    """The machine can't do what was asked; the text says what was wanted, found, and what to do."""


class Machine:
    """A simulated Proxmox host in a state folder.

    Use `install` or `open` to get one. Objects keep nothing but the path: several of them, and the simulated
    commands, may work on the same folder.
    """

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()

    @classmethod
    def install(cls, state: Path, scenario: Scenario) -> Machine:
        """The stock host of a scenario, powered off, its boot configuration generated as its own tools do.

        Replaces root/, esp/ and what belongs to the machine in the folder; keys and logs are left alone.

        Args:
            state: the state folder; made when it isn't there.
        """
        machine = cls(state)
        machine.state.mkdir(parents=True, exist_ok=True)
        for name in ("root", "esp", "covered", "initramfs", "bin", "guests"):
            shutil.rmtree(machine.state / name, ignore_errors=True)
        for name in ("kernel.json", "dmesg"):
            (machine.state / name).unlink(missing_ok=True)
        network.write(machine.state)
        if not kept.write(scenario, machine.state):
            machine._install(scenario)
            kept.keep(scenario, machine.state)
        return machine

    def _install(self, scenario: Scenario) -> None:
        data = scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        (self.state / "scenario.yaml").write_text(quick_yaml.dump(data, sort_keys=False), encoding="utf-8")
        (self.state / "machine.json").write_text(
            json.dumps(scenario.machine(), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        host = self._host()
        faults, host.machine["faults"] = host.machine["faults"], {}
        host.save_machine()  # installing is free of faults, whatever the scenario sets for later
        self._write_launchers()
        host.esp.mkdir()
        write_stock_tree(host, scenario)
        self._generate_boot(host)
        host.machine["faults"] = faults
        host.save_machine()

    @classmethod
    def open(cls, state: Path) -> Machine:
        """The machine that was installed in a state folder.

        Raises:
            MachineError: there is none.
        """
        machine = cls(state)
        if not (machine.state / "machine.json").exists():
            raise MachineError(
                f"no machine in {state}: expected its machine.json. Install one first (python -m lab start)"
            )
        network.write(machine.state)
        machine._write_launchers()
        return machine

    def _host(self) -> HostState:
        return HostState(self.state)

    def _generate_boot(self, host: HostState) -> None:
        """What the installer's last steps do: initramfs images, ESPs, grub.cfg."""
        environment = self.environment()
        host.quiet = True
        for kernel in host.kernels():
            host.write(f"/boot/initrd.img-{kernel}", build_image(host, kernel), 0o600)
        # Also with systemd-boot: the kernel packages' hooks run update-grub on every Proxmox host.
        mkconfig(host, host.root / "boot/grub/grub.cfg", {**environment, "PVE_EFIBOOT_UNSHARED": "1"})
        write_grubenv(host.root / "boot/grub/grubenv", {})
        if host.machine["boot"]["esps"]:
            sync(host, environment)

    def _write_launchers(self) -> None:
        """STATE/bin: one launcher for each simulated command this host has."""
        launchers.write(self.state / "bin", OF_HOST)
        (self.state / SHELL_FILE).write_text(SHELL_TEXT + PYTHON_IN_BASH, encoding="utf-8")

    # -- kernel packages ---------------------------------------------------------------------------------
    def install_kernel(self, kernel: str) -> None:
        """Install a kernel package: its files, then the hooks in /etc/kernel/postinst.d, as dpkg does.

        Args:
            kernel: version, such as 6.17.4-1-pve.

        Raises:
            MachineError: a hook fails.
        """
        host = self._host()
        kernel_files.write_kernel(host, kernel)
        note_package(host, f"proxmox-kernel-{kernel}-signed", kernel.removesuffix("-pve"))
        if "proxmox-default-headers" in installed(host):
            install_headers(host, kernel)
        try:
            dkms.autoinstall(host, kernel)
        except Failure as error:
            raise MachineError(f"run-parts: /etc/kernel/postinst.d/dkms exited with return code 11: {error}") from error
        self._kernel_hooks("postinst.d", kernel)

    def remove_kernel(self, kernel: str) -> None:
        """Remove a kernel package: its files, then the hooks in /etc/kernel/postrm.d.

        Raises:
            MachineError: a hook fails.
        """
        host = self._host()
        kernel_files.remove_kernel(host, kernel)
        self._kernel_hooks("postrm.d", kernel)
        kernel_files.remove_modules(host, kernel)
        forget(host, f"proxmox-kernel-{kernel}-signed")

    def _kernel_hooks(self, folder: str, kernel: str) -> None:
        try:
            contents.run_hooks(self._host(), folder, kernel, self.environment())
        except Failure as error:
            raise MachineError(str(error)) from error

    # -- power -------------------------------------------------------------------------------------------
    def boot(self, reason: str) -> BootResult:
        """Start the machine; its /proc, /sys, /dev and /run are made anew.

        Args:
            reason: "start", "reboot" or "power".
        """
        # As late as this: the API's modules need this one's package.
        from lab.api.boot import settle

        result = booting.boot(self._host(), reason, self.environment())
        if result.comes_up:
            settle(self._host())
            booting.start_other_services(self._host(), self.environment())
        return result

    def shutdown(self) -> None:
        """Stop guests, unmount, and leave an empty /run: what a clean shutdown does.

        With the fault power-cut the guests' hookscripts aren't asked, as when the plug is pulled.
        """
        from lab.api.boot import stop_all

        host = self._host()
        if host.running and not host.fault("power-cut"):
            with host.changing_running() as running:
                running["stopping"] = True
            stop_all(host)
            host.reload()
        for guest in host.machine["guests"].values():
            # A VM's process is no child of whoever shuts the host down, and outlives whoever started it.
            if process := guest.get("process"):
                kill_group(*process)
        booting.shutdown(host)

    def power(self) -> Literal["on", "off"]:
        """Whether the machine is on."""
        return "on" if self._host().machine["power"] == "on" else "off"

    # -- tampering ---------------------------------------------------------------------------------------
    @property
    def faults(self) -> dict[str, Any]:
        """The faults that are set."""
        return dict(self._host().machine["faults"])

    def set_fault(self, name: str, value: Any) -> None:
        """Set a fault, or clear it with None.

        Raises:
            MachineError: no such fault.
        """
        if name not in FAULTS:
            known = "\n".join(f"  {key}: {what}" for key, what in FAULTS.items())
            raise MachineError(f"no fault {name!r}; there are:\n{known}")
        with self._host().changing() as machine:
            if value is None:
                machine["faults"].pop(name, None)
            else:
                machine["faults"][name] = value
        self._show_faults(name)

    def clear_faults(self) -> None:
        """Clear all faults."""
        with self._host().changing() as machine:
            machine["faults"] = {}
        self._show_faults("card-users")
        self._show_faults("card-dead")

    def _show_faults(self, name: str) -> None:
        """Have a running host show at once what a fault changes of it."""
        host = self._host()
        if name == "card-users":
            holders.update(host)
        elif name == "card-dead" and host.running:
            nvidia.show_dead(host)

    @property
    def next_entry(self) -> str | None:
        """The boot entry chosen for the next boot alone, as a person does at the boot menu."""
        value = self._host().machine["next_entry"]
        return None if value is None else str(value)

    @next_entry.setter
    def next_entry(self, entry: str | None) -> None:
        """Choose by title, id, number, or a path of these joined by `>`."""
        with self._host().changing() as machine:
            machine["next_entry"] = entry

    def exchange(self, address: str, ids: str, subsystem: str) -> None:
        """Put another card's function where one is, as a person does while the host is off; seen from the next boot on.

        Args:
            address: the function's, such as 0000:01:00.0.
            ids: vendor:device.
            subsystem: subsystem vendor:device.
        """
        with self._host().changing() as machine:
            device = next(entry for entry in machine["hardware"]["devices"] if entry["address"] == address)
            device["vendor"], device["device"] = ids.split(":")
            device |= {"subsystem": subsystem, "name": None}

    def environment(self) -> dict[str, str]:
        """The environment in which commands and scripts run on this host; nothing of the caller's is in it."""
        return host_environment(self.state)
