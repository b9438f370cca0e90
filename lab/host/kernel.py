"""The kernel of a lab host: which modules are loaded, which driver has which device.

The rules are the driver core's (drivers/base/dd.c, drivers/pci/pci-driver.c of Linux 6.x):
a driver that is registered is offered every device without one; `driver_override` lets only the named
driver match; otherwise ids added at run time and the driver's own table count; nothing takes a device
from a driver that has it. What sysfs shows (`driver` links, /proc/modules, /dev/vfio) follows at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from . import catalogue, holders, kernel_files, nvidia, udev
from .catalogue import MODULES, normal
from .devices import PciDevice, is_alone_for_a_bus_reset, load_devices, reset_methods
from .modprobe import ModprobeConfig
from .state import CONTROL_FILE, HostState, kernel_release


class ModprobeError(Exception):
    """modprobe can't load a module; the text is modprobe's own."""


class RunningKernel:
    """The running kernel of one host: `attach` to look at it, `changing` to change it, `save` after a boot.

    Args:
        host: the host.
        data: kernel.json's content: boot_id, kernel, cmdline, started_at, iommu, loaded, drivers, bound, ids.
    """

    def __init__(self, host: HostState, data: dict[str, Any]) -> None:
        self.host = host
        self.data = data
        self.devices: dict[str, PciDevice] = {d.address: d for d in load_devices(host.machine)}
        self.loaded: dict[str, str] = data["loaded"]
        self.drivers: list[str] = data["drivers"]
        self.bound: dict[str, str] = data["bound"]
        self.ids: dict[str, list[str]] = data["ids"]

    @cached_property
    def nvidia_build(self) -> kernel_files.Build | None:
        """What NVIDIA's module of this kernel was built from: of the loaded one, else of the file; None without one."""
        return nvidia.running_build(self.host) or kernel_files.build_of(self.host, self.data["kernel"])

    @property
    def nvidia_installed(self) -> bool:
        """Whether this kernel has NVIDIA's modules."""
        return self.nvidia_build is not None

    @classmethod
    def attach(cls, host: HostState) -> RunningKernel:
        """The kernel that runs now.

        Raises:
            RuntimeError: the host is off.
        """
        data = host.running
        if not data:
            raise RuntimeError("the lab host is off: no kernel runs; boot it first (Machine.boot)")
        return cls(host, data)

    @classmethod
    @contextlib.contextmanager
    def changing(cls, host: HostState) -> Iterator[RunningKernel]:
        """The kernel that runs now, changed by the caller alone; what was changed is visible at the end, after an error too.

        Raises:
            RuntimeError: the host is off.
        """
        with host.changing_running():
            kernel = cls.attach(host)
            try:
                yield kernel
            finally:
                kernel.save()

    def save(self) -> None:
        """Make the state visible: kernel.json, /proc/modules, who holds cards."""
        holders.update(self.host, self.data)
        self.host.save_running(self.data)
        self._write_proc_modules()

    @property
    def release(self) -> tuple[int, int]:
        """(6, 17) of 6.17.2-1-pve."""
        return kernel_release(self.data["kernel"])

    # -- sysfs -------------------------------------------------------------------------------------------
    def device_folder(self, address: str) -> Path:
        """The device's folder in sysfs."""
        return self.host.root / "sys/bus/pci/devices" / address

    def _below_sys(self, address: str) -> str:
        """Where the device's own folder lies in /sys: devices/pci0000:00/…"""
        return os.readlink(f"{self.host.root}/sys/bus/pci/devices/{address}").removeprefix("../../../")  # noqa: PTH115

    def override_of(self, address: str) -> str | None:
        """driver_override as written, None when not set (the kernel prints `(null)`)."""
        # Each driver is offered each device: no time for a Path, a file and a decoder.
        file = os.open(f"{self.host.root}/sys/bus/pci/devices/{address}/driver_override", os.O_RDONLY)
        text = os.read(file, 4096).decode().strip()
        os.close(file)
        return None if text in ("", "(null)") else text

    # -- drivers -----------------------------------------------------------------------------------------
    def register_driver(self, driver: str, module: str | None) -> None:
        """A driver appears on the PCI bus and is offered every device without one."""
        if driver not in self.drivers:
            self.drivers.append(driver)
            folder = f"/sys/bus/pci/drivers/{driver}"
            for name in ("bind", "unbind", "new_id", "remove_id"):
                self.host.write(f"{folder}/{name}", b"", CONTROL_FILE)
            if module is not None:
                # One that was killed while it was loaded has left its link.
                self.host.symlink(f"{folder}/module", f"../../../../module/{module}")
        for address in self.devices:
            if address not in self.bound:
                self._try_bind(driver, address)

    def unregister_driver(self, driver: str) -> None:
        """A driver leaves the bus (its module is removed); its devices are left without a driver."""
        for address in [a for a, d in self.bound.items() if d == driver]:
            self._detach(address)
        self.drivers.remove(driver)
        self.ids.pop(driver, None)
        folder = self.host.root / "sys/bus/pci/drivers" / driver
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()

    def matches(self, driver: str, address: str) -> bool:
        """Whether the PCI bus would offer the device to the driver (pci_match_device)."""
        device, override = self.devices[address], self.override_of(address)
        if override is not None:
            return override == driver
        if device.ids in self.ids.get(driver, []):
            return True
        if driver == "nouveau" and device.vendor == "10de" and device.is_display:
            return True  # its table takes any NVIDIA display class; probing decides
        return device.claimed_by(driver, self.nvidia_installed)

    def _try_bind(self, driver: str, address: str) -> bool:
        if not self.matches(driver, address):
            return False
        device = self.devices[address]
        # On the host the scenario says what nouveau takes; a guest's kernel is another one.
        known = "guest" not in self.host.machine or nvidia.nouveau_knows(self.host, self.data["kernel"], device.device)
        if driver == "nouveau" and (device.driver != "nouveau" or not known):
            self.host.kernel_message(f"nouveau {address}: unknown chipset ({device.device}00a1)")
            return False
        if driver == "nvidia" and not nvidia.probe(self, address):
            return False
        self._attach(driver, address)
        return True

    def _attach(self, driver: str, address: str) -> None:
        sys, below = f"{self.host.root}/sys", self._below_sys(address)
        up = "../" * (below.count("/") + 1)
        os.symlink(f"{up}bus/pci/drivers/{driver}", f"{sys}/{below}/driver")  # noqa: PTH211
        os.symlink(f"../../../../{below}", f"{sys}/bus/pci/drivers/{driver}/{address}")  # noqa: PTH211
        self.host.write(f"/sys/{below}/enable", "1\n" if driver != "vfio-pci" else "0\n")
        self.bound[address] = driver
        self._vfio_node(address)
        if driver == "nvidia":
            nvidia.card_bound(self, address)
        elif driver in nvidia.DRM_DRIVERS and self.devices[address].is_display:
            nvidia.add_drm_card(self, address)

    def _detach(self, address: str) -> None:
        self._hide_driver(address)
        driver = self.bound.pop(address)
        self.data.get("removing", {}).pop(address, None)
        (self.device_folder(address) / "enable").write_text("0\n", encoding="utf-8")
        self._vfio_node(address)
        if driver == "nvidia":
            nvidia.card_released(self, address)
        elif driver in nvidia.DRM_DRIVERS:
            nvidia.remove_drm_card(self, address)

    def _hide_driver(self, address: str) -> None:
        """The links between a device and its driver go before the driver is asked to let go (drivers/base/dd.c)."""
        (self.device_folder(address) / "driver").unlink(missing_ok=True)
        (self.host.root / "sys/bus/pci/drivers" / self.bound[address] / address).unlink(missing_ok=True)

    # -- a driver that doesn't let go -------------------------------------------------------------------------
    def is_held_up(self, file: str, value: str) -> bool:
        """Whether a write waits for a device's lock, which somebody has who waits for the device's driver.

        A new id is offered to every device, so that it waits for any.
        """
        removing = self.data.get("removing", {})
        return bool(removing) if file.endswith("/new_id") else file.startswith("dr") and value in removing

    def begins_to_wait(self, file: str, address: str) -> bool:
        """Begin a device's removal that waits, and say so; False for any other write."""
        if file != "drivers/nvidia/unbind" or self.bound.get(address) != "nvidia":
            return False
        if not nvidia.removal_waits(self, address):
            return False
        self._hide_driver(address)
        self.data.setdefault("removing", {})[address] = nvidia.begin_removal(self, address)
        return True

    def end_waiting(self, address: str) -> bool:
        """End a removal whose driver has let go; False while it hasn't."""
        if nvidia.removal_waits(self, address):
            return False
        self.host.kernel_message("NVRM: Continuing with GPU removal for device " + address)
        self._detach(address)
        return True

    def _vfio_node(self, address: str) -> None:
        """/dev/vfio/<group> exists while a device of the group is on vfio-pci."""
        group = self.group_of(address)
        if group is not None:
            if any(driver == "vfio-pci" and self.group_of(a) == group for a, driver in self.bound.items()):
                node = self.host.rooted(f"/dev/vfio/{group}")
                node.parent.mkdir(exist_ok=True)
                node.touch()
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.host.root}/dev/vfio/{group}")  # noqa: PTH108

    def group_of(self, address: str) -> int | None:
        """The device's IOMMU group on the running system."""
        try:
            link = os.readlink(f"{self.host.root}/sys/bus/pci/devices/{address}/iommu_group")  # noqa: PTH115
        except OSError:
            return None
        return int(link.rpartition("/")[2])

    # -- what a person or a script writes into sysfs -------------------------------------------------------
    def write(self, file: str, value: str) -> int:
        """A write to a control file of the PCI bus: `drivers_probe`, `drivers/<driver>/bind|unbind|new_id|remove_id`.

        Returns:
            0, or the errno with which the kernel refuses the write.
        """
        value = value.strip()
        if file == "drivers_probe":
            return self._drivers_probe(value)
        _, driver, verb = file.split("/")
        if verb == "reset":
            return self._reset(driver, value)
        if verb == "reset_method":
            return self._choose_resets(driver, value)
        if verb in ("new_id", "remove_id"):
            return self._dynamic_id(driver, verb, value)
        if value not in self.devices:
            return errno.ENODEV
        if verb == "unbind":
            if self.bound.get(value) != driver:
                return errno.ENODEV
            self._detach(value)
            return 0
        if value in self.bound or not self.matches(driver, value):
            return errno.EBUSY if value in self.bound else errno.ENODEV
        return 0 if self._try_bind(driver, value) else errno.ENODEV

    def _reset(self, address: str, value: str) -> int:
        """A write to a device's `reset` (drivers/pci/pci-sysfs.c, reset_store).

        Each method that is listed has its turn while those before it answer ENOTTY (drivers/pci/pci.c, __pci_reset_function_locked), which
        `bus` does for a function that isn't alone on its bus (pci_parent_bus_reset), and so does what runs into a device that isn't ready again
        (pci_dev_wait).
        """
        if value != "1":
            return errno.EINVAL
        device, fault = self.devices[address], self.host.fault("reset-fails")
        if nvidia.is_dead(self.host, address):
            # pci_power_up, by which a reset begins.
            self.host.kernel_message(
                f"{self.bound.get(address, 'pci')} {address}: Unable to change power state from D3cold to D0, device inaccessible"
            )
            return errno.ENOTTY
        if fault is True or (fault and str(fault) in address):
            return errno.ENOTTY
        listed = (self.device_folder(address) / "reset_method").read_text(encoding="utf-8").split()
        return 0 if set(listed) & set(self._resets_now(device)) else errno.ENOTTY

    def _resets_now(self, device: PciDevice) -> list[str]:
        """The resets that the kernel would list if it looked at the device once more: `bus` for one that is alone on its bus."""
        alone = is_alone_for_a_bus_reset(device, [*self.devices.values()])
        return [*device.resets, *(["bus"] if alone else [])]

    def _choose_resets(self, address: str, value: str) -> int:
        """A write to `reset_method` (drivers/pci/pci.c, reset_method_store): each method that is named is probed once more; one that fails leaves
        what was there. So `bus`, which the first function of a card lists, can't be written.
        """
        device = self.devices[address]
        chosen: dict[str, list[str]] = self.data.setdefault("reset_methods", {})
        wanted = self._resets_now(device) if value == "default" else value.split()
        refused = not set(wanted) <= set(self._resets_now(device))
        if not refused:
            chosen[address] = wanted
        listed = chosen.get(address, reset_methods([*self.devices.values()])[address])
        (self.device_folder(address) / "reset_method").write_text(f"{' '.join(listed)}\n", encoding="utf-8")
        return errno.EINVAL if refused else 0

    def _drivers_probe(self, address: str) -> int:
        if address not in self.devices:
            return errno.ENODEV
        if address not in self.bound:
            for driver in self.drivers:
                if self._try_bind(driver, address):
                    break
        return 0

    def _dynamic_id(self, driver: str, verb: str, value: str) -> int:
        words = value.replace(":", " ").split()
        if len(words) < 2:
            return errno.EINVAL
        ids = f"{words[0].lower():0>4}:{words[1].lower():0>4}"
        known = self.ids.setdefault(driver, [])
        if verb == "remove_id":
            if ids not in known:
                return errno.ENODEV
            known.remove(ids)
            return 0
        if ids in known:
            return errno.EEXIST
        known.append(ids)
        for address in self.devices:
            if address not in self.bound:
                self._try_bind(driver, address)
        return 0

    # -- modules -----------------------------------------------------------------------------------------
    def load_module(self, module: str, config: ModprobeConfig, available: set[str], arguments: str = "") -> None:
        """modprobe: soft and hard dependencies first, then the module with its options.

        Args:
            available: normalised names of the modules whose files can be reached at this stage.
            arguments: options given on modprobe's own command line.

        Raises:
            ModprobeError: it isn't there, or an install command fails.
        """
        name = normal(module)
        if name in self.loaded or self.is_built_in(name):
            return
        for before in config.soft_before.get(name, []):
            try:
                self.load_module(before, config, available)
            except ModprobeError:
                continue  # a soft dependency that can't be met is no error (modprobe.d(5))
        if config.is_disabled(name):
            if config.install[name].endswith("true"):
                return
            raise ModprobeError(f"modprobe: ERROR: could not insert '{name}': Operation not permitted")
        if name in config.off:
            raise ModprobeError(
                f"modprobe: FATAL: Module off not found in directory /lib/modules/{self.data['kernel']}"
            )
        if name not in available or not catalogue.exists_in(name, self.release):
            raise ModprobeError(
                f"modprobe: FATAL: Module {module} not found in directory /lib/modules/{self.data['kernel']}"
            )
        for needed in MODULES[name].needs:
            if catalogue.exists_in(needed, self.release):
                self.load_module(needed, config, available)
        self._require_signature(name)
        self._require_no_word_against(name)
        self._insert(name, " ".join([*config.options.get(name, []), *arguments.split()]))
        for after in [*catalogue.SOFT_AFTER.get(name, ()), *config.soft_after.get(name, [])]:
            try:
                self.load_module(after, config, available)
            except ModprobeError:
                continue

    def is_built_in(self, module: str) -> bool:
        """Whether the module is part of the kernel image on this machine."""
        return any(
            d.built_in and d.driver is not None and catalogue.module_of_driver(d.driver) == module
            for d in self.devices.values()
        )

    def _require_signature(self, name: str) -> None:
        """With Secure Boot the kernel is locked down, and takes modules alone that were signed with a key that it knows."""
        if not self.host.machine["hardware"]["firmware"]["secure_boot"] or self.host.machine.get("mok_enrolled"):
            return
        build = kernel_files.build_of(self.host, self.data["kernel"], name)
        if build is not None and build.signer != kernel_files.KERNEL_KEY:
            self.host.kernel_message("Loading of module with unavailable key is rejected")
            raise ModprobeError(f"modprobe: ERROR: could not insert '{name}': Key was rejected by service")

    def _require_no_word_against(self, name: str) -> None:
        """The kernel itself refuses the modules of `module_blacklist=` on its command line, whoever loads them."""
        words = self.host.read("/proc/cmdline", "").split()
        values = [word.partition("=")[2] for word in words if word.startswith("module_blacklist=")]
        if values and name in map(normal, values[-1].split(",")):
            self.host.kernel_message(f"Module {name} is blacklisted")
            raise ModprobeError(f"modprobe: ERROR: could not insert '{name}': Operation not permitted")

    def _insert(self, name: str, options: str) -> None:
        if name in self.loaded:  # a dependency's soft dependency was this very module
            return
        self.loaded[name] = options
        os.makedirs(f"{self.host.root}/sys/module/{name}", exist_ok=True)  # noqa: PTH103
        if name == "nvidia":
            self._insert_nvidia()
            return
        if name == "vfio":
            self.host.kernel_message("VFIO - User Level meta-driver version: 0.3")
            node = self.host.root / "dev/vfio/vfio"
            node.parent.mkdir(parents=True, exist_ok=True)
            node.touch()
        if name in catalogue.NVIDIA_HOST_MODULES:
            nvidia.module_loaded(self, name)
        driver = MODULES[name].driver
        if driver is None:
            return
        if name == "vfio_pci":
            self._take_vfio_ids(options)
        self.register_driver(driver, name)

    def _insert_nvidia(self) -> None:
        """NVIDIA's module registers its driver, and stays if that gets a card."""
        self.__dict__.pop("nvidia_build", None)  # the file may have changed since
        self.host.kernel_message("nvidia: loading out-of-tree module taints kernel.")
        self.host.kernel_message("nvidia-nvlink: Nvlink Core is being initialized, major device number 511")
        self.register_driver("nvidia", "nvidia")
        if nvidia.insertion_refused(self):
            self.unregister_driver("nvidia")
            del self.loaded["nvidia"]
            self.host.remove_tree("/sys/module/nvidia")
            raise ModprobeError("modprobe: ERROR: could not insert 'nvidia': No such device")
        nvidia.module_loaded(self, "nvidia")

    def _take_vfio_ids(self, options: str) -> None:
        for word in options.split():
            key, _, value = word.partition("=")
            if key != "ids":
                continue
            # The last `ids=` wins, as for any module parameter given twice.
            self.ids["vfio-pci"] = []
            for entry in filter(None, value.split(",")):
                fields = entry.lower().split(":")
                if len(fields) < 2:
                    self.host.kernel_message(f"vfio-pci: invalid id string {entry!r}")
                    continue
                ids = f"{fields[0]:0>4}:{fields[1]:0>4}"
                self.ids["vfio-pci"].append(ids)
                self.host.kernel_message(f"vfio_pci: add [{ids}[ffffffff:ffffffff]] class 0x000000/00000000")

    def remove_module(self, module: str) -> None:
        """rmmod: the module, and its driver with it.

        Raises:
            ModprobeError: not loaded, or another loaded module needs it.
        """
        name = normal(module)
        if name not in self.loaded:
            raise ModprobeError(f"modprobe: FATAL: Module {module} is not currently loaded.")
        users = [m for m in self.loaded if name in MODULES[m].needs]
        if users:
            raise ModprobeError(f"modprobe: FATAL: Module {module} is in use by: {' '.join(users)}.")
        if holders.pins(self.data, name):
            raise ModprobeError(f"modprobe: FATAL: Module {module} is in use.")
        driver = MODULES[name].driver
        if driver is not None and driver in self.drivers:
            self.unregister_driver(driver)
        del self.loaded[name]
        self.host.remove_tree(f"/sys/module/{name}")
        if name in catalogue.NVIDIA_HOST_MODULES:
            nvidia.module_removed(self, name)

    def coldplug(self, config: ModprobeConfig, available: set[str], rules: Sequence[udev.Rule] = ()) -> None:
        """What udev does for every device that is there: set what its rules say, then load the modules whose alias matches.

        Blacklisted modules are left out; a device keeps the driver it has, and no driver that is there is asked anew.
        """
        for device in self.devices.values():
            udev.add(self.device_folder(device.address), rules)
            for module in device.candidates(self.nvidia_installed):
                if module in config.blacklist or module not in available:
                    continue
                try:
                    self.load_module(module, config, available)
                except ModprobeError as error:
                    self.host.kernel_message(f"systemd-udevd[214]: {error}")

    def module_users(self, name: str) -> list[str]:
        """Loaded modules that need this one."""
        return [m for m in self.loaded if name in MODULES[m].needs]

    def _write_proc_modules(self) -> None:
        lines = []
        for name in reversed(list(self.loaded)):
            users = self.module_users(name)
            used_by = "".join(f"{u}," for u in users) if users else "-"
            size = MODULES[name].size
            count = len(users) + holders.pins(self.data, name)
            lines.append(f"{name} {size} {count} {used_by} Live 0x0000000000000000")
        self.host.write("/proc/modules", "".join(line + "\n" for line in lines))


def modules_on_disk(root: Path, kernel: str) -> set[str]:
    """Normalised names of the modules below <root>/usr/lib/modules/<kernel> or <root>/lib/modules/<kernel>."""
    for base in ("usr/lib/modules", "lib/modules"):
        folder = root / base / kernel
        if folder.is_dir():
            return {kernel_files.name_in(path) for path in kernel_files.module_files(folder)}
    return set()


def modules_of(host: HostState, kernel: str) -> set[str]:
    """Normalised names of the modules that a host has for a kernel, in its root file system."""
    return modules_on_disk(host.root, kernel)
