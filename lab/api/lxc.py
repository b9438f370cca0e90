"""Containers: /nodes/{node}/lxc. Messages and order of checks are PVE::API2::LXC's."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lab.host.pve_packages import is_pve9

from . import container_system, ha_config, hooks
from .call import Call
from .errors import ApiError, Died, bad_parameters
from .formats import format_properties, format_size, size_of
from .guest_config import GuestConfig
from .guests import (
    Change,
    Guest,
    await_config_lock,
    disturbed,
    guests_of,
    locked_config,
    new_mac,
    option_values,
    reacts,
    require_unlocked,
    taken_by,
)
from .options import UNKNOWN, parse_properties
from .qemu import require_digest, shown_config
from .quorum import require_cluster_ready
from .storage import Storages
from .tasks import TaskLog, Work

_GIB = 1 << 30
_BLOCK = 4096
# How much longer than its time limit a shutdown waits for a container that didn't follow; a node waits for five seconds.
_POLL_SECONDS = 0.5
_DEVICE = re.compile(r"dev\d+")
_NET = re.compile(r"net\d+")
_SIZE = re.compile(r"(?:^|,)size=([^,]+)")
_VOLUME = re.compile(r"rootfs|mp\d+|unused\d+")
_DIGEST_MISMATCH = "detected modified configuration - file changed by other user? Try again."
_ONLY_IN_9 = frozenset({"entrypoint", "env"})
# What a running container doesn't take before its next start.
_WAITS = frozenset({"arch", "cmode", "console", "entrypoint", "env", "features", "ostype", "tty", "unprivileged"})


# -- what is asked ---------------------------------------------------------------------------------------------
def listing(call: Call) -> list[dict[str, Any]]:
    """GET /nodes/{node}/lxc."""
    return [summary(guest) for guest in guests_of(call.host, "lxc")]


def summary(guest: Guest) -> dict[str, Any]:
    """What lists say of a container."""
    config = guest.config()
    values, running = config.values, guest.running
    memory, swap = int(values.get("memory", "512")) << 20, int(values.get("swap", "512")) << 20
    size = _SIZE.search(values.get("rootfs", ""))
    found: dict[str, Any] = {
        "vmid": guest.vmid, "type": "lxc", "name": values.get("hostname", f"CT{guest.vmid}"),
        "status": "running" if running else "stopped", "cpu": 0, "cpus": int(values.get("cores", "2")),
        "mem": memory // 8 if running else 0, "maxmem": memory, "swap": 0, "maxswap": swap,
        # A folder without a quota counts as the 4 GiB that a new container gets.
        "disk": 0, "maxdisk": (size_of(size[1]) if size else 0) or 4 * _GIB,
        "diskread": 0, "diskwrite": 0, "netin": 0, "netout": 0, "uptime": int(guest.uptime),
    }  # fmt: skip
    found |= {key: values[key] for key in ("tags", "lock") if key in values}
    return found | ({"pid": guest.pid} if running else {})


def status(call: Call) -> dict[str, Any]:
    """GET .../status/current."""
    guest = call.guest("lxc")
    guest.config()
    return {**summary(guest), "ha": ha_config.shown(guest)}


def config(call: Call) -> dict[str, Any]:
    """GET .../config."""
    return shown_config(call, call.guest("lxc"))


def pending(call: Call) -> list[dict[str, Any]]:
    """GET .../pending."""
    return call.guest("lxc").config().shown_pending()


# -- what is refused -------------------------------------------------------------------------------------------
def _require_known(call: Call, values: dict[str, str]) -> None:
    """Refuse what Proxmox VE 8 doesn't know."""
    if not is_pve9(call.host) and (named := [key for key in values if key in _ONLY_IN_9]):
        raise bad_parameters(dict.fromkeys(named, UNKNOWN))


def _require_devices(call: Call, values: dict[str, str]) -> None:
    """Refuse device nodes that the host hasn't."""
    for option in container_system.device_options(call.host, values).values():
        container_system.host_node(call.host, option["path"])


# -- create and delete -----------------------------------------------------------------------------------------
def create(call: Call) -> str:
    """POST /nodes/{node}/lxc."""
    guest = call.guest("lxc")
    wanted = option_values("lxc", call.parameters)
    if is_pve9(call.host):
        wanted.setdefault("unprivileged", "1")
    if call.parameters.get("restore"):
        raise Died("the lab restores no backups: create the container from a template")
    _require_known(call, wanted)
    _require_devices(call, wanted)
    require_cluster_ready(call.host)
    if taken := taken_by(call.host, guest.vmid):
        raise Died(taken)
    reserved = GuestConfig("lxc")
    reserved.values["lock"] = "create"
    guest.save(reserved)

    def work(log: TaskLog) -> Work:
        yield 0.05
        volumes: list[str] = []
        try:
            made = GuestConfig("lxc")
            made.values.update(_new_values(call, guest.vmid, wanted, log, volumes))
            _extract(call, wanted, log)
        except ApiError as error:
            for volume in volumes:
                Storages(call.host).free(volume)
            guest.remove()
            log(error.text.removesuffix("\n"))
            raise Died(f"unable to create CT {guest.vmid} - {error.text}") from error
        guest.save(made)
        if call.parameters.get("start"):
            start(call)

    return call.start("vzcreate", str(guest.vmid), work)


def _new_values(call: Call, vmid: int, wanted: dict[str, str], log: TaskLog, volumes: list[str]) -> dict[str, str]:
    made = {"arch": "amd64", "memory": "512", "swap": "512", "ostype": "unmanaged", **wanted}
    if made.get("unprivileged") == "0":
        del made["unprivileged"]
    made.setdefault("rootfs", f"{call.parameters.get('storage', 'local')}:4")
    for key in sorted(made):
        if _NET.fullmatch(key):
            made[key] = _filled_net(vmid, key, made[key])
        elif _VOLUME.fullmatch(key):
            made[key] = _filled_volume(call, vmid, key, made[key], log, volumes)
    return made


def _filled_net(vmid: int, key: str, value: str) -> str:
    option = parse_properties("lxc-net", value)
    option = {"type": "veth", "hwaddr": new_mac(f"{vmid}/{key}/{uuid.uuid4()}"), **option}
    # A node prints the name before all else.
    name = option.pop("name")
    return ",".join([f"name={name}", *(f"{k}={v}" for k, v in sorted(option.items()))])


def _filled_volume(call: Call, vmid: int, key: str, value: str, log: TaskLog, volumes: list[str]) -> str:
    form = "lxc-rootfs" if key == "rootfs" else "lxc-mountpoint"
    option = parse_properties(form, value)
    storage, _, rest = option["volume"].partition(":")
    if not re.fullmatch(r"\d+(?:\.\d+)?", rest):
        return value
    size = int(float(rest) * _GIB)
    option["volume"] = Storages(call.host).allocate(storage, vmid, size, set(volumes), log, "rootdir")
    volumes.append(option["volume"])
    if size:
        _log_file_system(log, size)
    option["size"] = format_size(size)
    return format_properties(form, option)


def _log_file_system(log: TaskLog, size: int) -> None:
    """What mkfs.ext4 says; copies of the superblock lie in groups 1 and powers of 3, 5 and 7."""
    blocks = size // _BLOCK
    log(f"Creating filesystem with {blocks} 4k blocks and {blocks // 4} inodes")
    log(f"Filesystem UUID: {uuid.uuid4()}")
    groups = sorted({1} | {base**power for base in (3, 5, 7) for power in range(1, 12)})
    log("Superblock backups stored on blocks: ")
    log("\t" + ", ".join(str(g * 32768) for g in groups if g * 32768 < blocks))


def _extract(call: Call, wanted: dict[str, str], log: TaskLog) -> None:
    template = call.parameters["ostemplate"]
    storages = Storages(call.host)
    storages.require_volume(template)
    storage, _, rest = template.partition(":")
    path = f"{storages.get(storage).settings['path']}/template/cache/{rest.partition('/')[2]}"
    size = call.host.rooted(path).stat().st_size
    log(f"extracting archive '{path}'")
    log(f"Total bytes read: {size} ({size / (1 << 20):.1f}MiB, 126MiB/s)")
    if wanted.get("ostype", "unmanaged") == "unmanaged" and "arch" not in wanted:
        log("Falling back to amd64.")
        log("Use `pct set VMID --arch ARCH` to change.")


def destroy(call: Call) -> str:
    """DELETE .../{vmid}; a running one only with `force`."""
    guest = call.guest("lxc")
    config = guest.config()
    if config.values.get("protection") == "1":
        raise Died(f"can't remove CT {guest.vmid} - protection mode enabled")
    if guest.running and not call.parameters.get("force"):
        raise Died(f"unable to destroy CT {guest.vmid} - container is running")

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        read = guest.config()
        require_unlocked(guest, read)
        guest.save(read)
        yield 0.05
        if guest.running:
            guest.set_running(False)
        for key, value in guest.config().values.items():
            if _VOLUME.fullmatch(key):
                Storages(call.host).free(value.partition(",")[0])
        if call.parameters.get("purge"):
            guest.purge(log)
        guest.remove()

    return call.start("vzdestroy", str(guest.vmid), work)


# -- change ----------------------------------------------------------------------------------------------------
def update(call: Call) -> None:
    """PUT .../config."""
    guest = call.guest("lxc")
    with locked_config(guest):
        _update(call, guest)


def _update(call: Call, guest: Guest) -> None:
    change = Change.of("lxc", call.parameters)
    _require_known(call, change.values)
    config = disturbed(guest)
    if "hookscript" in change.values:
        hooks.require(call.host, change.values["hookscript"], content=True)
    require_digest(config, change.digest, _DIGEST_MISMATCH)
    require_unlocked(guest, config)
    _require_changeable(change)
    _require_devices(call, change.values)
    config.revert(change.revert)
    values = {key: _filled(call, guest.vmid, key, value) for key, value in change.values.items()}
    running = guest.running
    plugged = {key: value for key, value in values.items() if _is_plugged(call, config, key)} if running else {}
    for key in change.delete:
        if key not in config.merged():
            call.say(f"cannot delete '{key}' - not set in current configuration!")
        config.change({}, [key], at_once=not running or not (_DEVICE.fullmatch(key) or key in _WAITS))
    for key, value in values.items():
        waits = key in _WAITS or (_DEVICE.fullmatch(key) is not None and key not in plugged)
        config.change({key: value}, [], at_once=not (running and waits))
    guest.save(config)
    if plugged:
        container_system.plug(guest, config, plugged)


def _is_plugged(call: Call, config: GuestConfig, key: str) -> bool:
    """Whether a running container gets an option's device at once: a new one; one that is there can't be exchanged."""
    return bool(_DEVICE.fullmatch(key)) and key not in config.values and container_system.plugs_devices(call.host)


def _require_changeable(change: Change) -> None:
    for key in change.delete:
        if key in ("memory", "rootfs", "swap", "arch", "ostype"):
            raise Died(f"unable to delete required option '{key}'")
    for key in change.keys:
        if key == "unprivileged":
            raise Died(f"unable to modify read-only option: '{key}'")


def _filled(call: Call, vmid: int, key: str, value: str) -> str:
    if _NET.fullmatch(key):
        return _filled_net(vmid, key, value)
    if _VOLUME.fullmatch(key):
        return _filled_volume(call, vmid, key, value, lambda _: None, [])  # type: ignore[arg-type]
    return value


# -- power -----------------------------------------------------------------------------------------------------
def start_work(guest: Guest, log: TaskLog) -> Work:
    """Start a container: pending changes come into force, its devices must be there; pre-start comes before the unit (fact 25).

    Raises:
        ApiError: what the task ends with.
    """
    config = guest.config()
    require_unlocked(guest, config)
    guest.take_pending(config)
    yield from hooks.run(guest, config.values, "pre-start", log)
    yield 0.1
    _begin(guest, config, log)
    yield from hooks.run(guest, config.values, "post-start", log)


def _begin(guest: Guest, config: GuestConfig, log: Callable[[str], None]) -> None:
    """Start what runs in it; what lxc prints goes to the log, the last line is what the task ends with."""
    try:
        with locked_config(guest):
            container_system.begin(guest, config)
    except ApiError as error:
        *lines, last = error.text.removesuffix("\n").split("\n")
        for line in lines:
            log(line)
        raise Died(last) from error
    guest.set_running(True)


def settle_after_boot(guest: Guest, _: TaskLog) -> None:
    """Start a container that came up with the host, and has no hookscript.

    Raises:
        ApiError: it is locked, or can't have its devices.
    """
    config = guest.config()
    require_unlocked(guest, config)
    guest.take_pending(config)
    container_system.begin(guest, config)


def stop_work(guest: Guest, log: TaskLog, *, skip_lock: bool = False) -> Work:
    """Stop a container at once.

    Raises:
        ApiError: it is locked.
    """
    await_config_lock(guest, log)
    if not skip_lock:
        require_unlocked(guest, guest.config())
    values = guest.config().values
    if guest.running:
        yield from hooks.run(guest, values, "pre-stop", log)
    yield 0.05
    yield from end(guest, values, log)


def end(guest: Guest, values: dict[str, str], log: Callable[[str], None]) -> Work:
    """A container's end, by a task or from inside; lxc-pve-poststop-hook writes its configuration, with what was pending,
    and runs post-stop. The task has ended well also where the hook can't write, without a quorum.
    """
    if guest.running:
        guest.set_running(False)
        config = guest.config()
        config.apply_pending()
        with suppress(Died):
            guest.save(config)
        yield from hooks.run(guest, values, "post-stop", log)


def shutdown_work(guest: Guest, log: TaskLog, timeout: float, *, force: bool) -> Work:
    """Shut a container down within a time limit in seconds.

    Raises:
        ApiError: it didn't go off, and isn't to be forced.
    """
    await_config_lock(guest, log)
    require_unlocked(guest, guest.config())
    values = guest.config().values
    if guest.running:
        yield from hooks.run(guest, values, "pre-stop", log)
    does_react = yield from reacts(guest, timeout)
    if not does_react and not force:
        log(f"command 'lxc-stop -n {guest.vmid} --nokill --timeout {timeout:.0f}' failed: exit code 1")
        does_react = yield from reacts(guest, timeout + _POLL_SECONDS)
        if not does_react:
            raise Died("container did not stop")
    await_config_lock(guest, log)
    yield 0.05
    yield from end(guest, values, log)


def _require_running(guest: Guest) -> None:
    """Refuse what only a running container takes; one that isn't there doesn't run either."""
    if not guest.running:
        raise Died(f"CT {guest.vmid} not running")


def start(call: Call) -> str:
    """POST .../status/start."""
    guest = call.guest("lxc")
    require_cluster_ready(call.host)
    if guest.running:
        raise Died(f"CT {guest.vmid} already running")
    return call.start("vzstart", str(guest.vmid), lambda log: start_work(guest, log))


def stop(call: Call) -> str:
    """POST .../status/stop."""
    guest = call.guest("lxc")
    _require_running(guest)
    skip = bool(call.parameters.get("skiplock"))
    return call.start("vzstop", str(guest.vmid), lambda log: stop_work(guest, log, skip_lock=skip))


def shutdown(call: Call) -> str:
    """POST .../status/shutdown."""
    guest = call.guest("lxc")
    _require_running(guest)
    timeout, force = float(call.parameters.get("timeout", 60)), bool(call.parameters.get("forceStop"))
    return call.start("vzshutdown", str(guest.vmid), lambda log: shutdown_work(guest, log, timeout, force=force))


def reboot(call: Call) -> str:
    """POST .../status/reboot; of one that is off it is said as of a VM."""
    guest = call.guest("lxc")
    guest.config()
    if not guest.running:
        raise Died(f"VM {guest.vmid} not running")
    timeout = float(call.parameters.get("timeout", 60))

    def work(log: TaskLog) -> Work:
        yield from shutdown_work(guest, log, timeout, force=True)
        yield from start_work(guest, log)

    return call.start("vzreboot", str(guest.vmid), work)
