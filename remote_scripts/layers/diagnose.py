"""What a diagnosis needs besides the host's reading: device nodes, NVIDIA's driver, containers' configurations and
insides. Changes nothing, and therefore runs no nvidia-smi: as root it loads modules and makes nodes.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from remote_scripts import installed
from remote_scripts.shared import api, guest_tasks, guests, nvidia, pmxcfs
from remote_scripts.shared.container_conf import passed_on, sections_of
from remote_scripts.shared.pmxcfs import NODES, PVE_LXC, content_of, this_node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text, without_secrets

# How long a container may take to be looked into, in seconds: a hung one must not hide what is known without it.
# Opening a card that isn't in use takes its driver a second or two.
_INSIDE_SECONDS = 25.0
_INSIDE_BYTES = 1 << 20
_DMI = "/sys/class/dmi/id"
_MACHINE = ("sys_vendor", "product_name", "board_vendor", "board_name")
_MODEL = re.compile(r"^model name\s*:(.*)$", re.MULTILINE)
_LOG_BYTES, _LOG_LINES = 1 << 20, 20
_COMMAND = re.compile(r"(command '\S+) (?:.*(?=' failed)|.*)")
_KINDS = {"lxc": "lxc", "qemu-server": "vm"}
# What its tasks' types begin with.
_TASKS = {"lxc": "vz", "qemu-server": "qm"}
_DEVICES = (("/dev", "nvidia"), ("/dev/nvidia-caps", ""), ("/dev/dri", ""), ("/dev", "kfd"))
_BY_PATH = "/dev/dri/by-path"
# What a VM gets at its next start; a container's is passed on with its configuration.
_PENDING = re.compile(r"(?:hostpci[0-9]+|machine|delete):")
# Raw keys that can give a container devices in ways that aren't judged here; their values stay where they are.
_OTHER_KEYS = re.compile(r"lxc\.(?:include|hook\.[a-z-]+|environment|cap\.[a-z]+|autodev|apparmor\.profile)")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`containers`: ids of those to look into; those that aren't here are left out."""

    containers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Guest:
    """A guest of the cluster: a wrong id is answered by what it is. `kind`: lxc or vm; `node`: where it is; `pending`:
    lines about devices that a VM gets at its next start; `failed_start`: the end of the log of its last start here, if
    that failed.
    """

    id: int
    kind: str
    node: str
    pending: str
    failed_start: str


@dataclass(frozen=True)
class Container:
    """`conf`: the lines of its configuration that are passed on; `other_keys`: raw keys that may give it more;
    `running`: None where `pct status` doesn't say it; `inside`: what inspect_inside.sh printed, empty unless it runs;
    `problem`: why that failed, if it did.
    """

    id: int
    conf: str
    other_keys: tuple[str, ...]
    running: bool | None
    inside: str
    problem: str


@dataclass(frozen=True)
class Answer:
    """`machine`: its maker's name and model, its board's too; `processor`: its model; both empty where the firmware or
    the kernel doesn't say it. `driver`: the version of the NVIDIA module that is loaded; `char_devices`: /proc/devices;
    `nodes`: a line for each character device of graphics, as inspect_inside.sh has them: path, major, minor
    (hexadecimal), mode, owner, group, kind; `links`: those in /dev/dri/by-path, each with where it leads.
    """

    node: str
    machine: str
    processor: str
    guests: tuple[Guest, ...]
    driver: str
    char_devices: str
    nodes: str
    links: str
    containers: tuple[Container, ...]


def read(system: System, wanted: Wanted) -> Answer:
    """Looks at all of it.

    :raises Failure: a configuration in /etc/pve can't be read.
    """
    files = system.files
    links = (f"{name} {os.readlink(files.at(f'{_BY_PATH}/{name}'))}" for name in files.names(_BY_PATH))
    node = this_node(system).name
    return Answer(
        node=node,
        machine=_machine(system),
        processor=_processor(system),
        guests=tuple(_guests(system, node)),
        driver=nvidia.version(system),
        char_devices=files.text("/proc/devices"),
        nodes="\n".join(_nodes(system)),
        links="\n".join(links),
        containers=tuple(_containers(system, wanted.containers)),
    )


def _machine(system: System) -> str:
    """No serial number: the files with these have other names."""
    parts = {name: system.files.text(f"{_DMI}/{name}").strip() for name in _MACHINE}
    machine = " ".join(filter(None, (parts["sys_vendor"], parts["product_name"])))
    board = " ".join(filter(None, (parts["board_vendor"], parts["board_name"])))
    return "; board: ".join(filter(None, dict.fromkeys((machine, board))))


def _processor(system: System) -> str:
    match = _MODEL.search(system.files.text("/proc/cpuinfo"))
    return match[1].strip() if match else ""


def _guests(system: System, here: str) -> Iterator[Guest]:
    tasks: list[dict[str, Any]] = []
    with contextlib.suppress(Failure):  # all else is said without them
        tasks = api.of(system).get("/tasks", source="archive", limit=guest_tasks.MOST)
    for node, folder, guest in pmxcfs.guests(system):
        text = as_text(content_of(system, f"{NODES}/{node}/{folder}/{guest}.conf") or b"")
        pending = [line for line in sections_of(text).get("pending", ()) if _PENDING.match(line)]
        log = _failed(system, _TASKS[folder], guest, tasks) if node == here else ""
        yield Guest(int(guest), _KINDS[folder], node, "\n".join(pending), log)


def _failed(system: System, kind: str, guest: str, tasks: list[dict[str, Any]]) -> str:
    """The end of the log of its last start, if that failed, without the command line of QEMU, which is long and has
    options of the owner's. None from before another guest got this id: what begins one with a start of its own may end
    after that.
    """
    start, *begins = (f"{kind}{work}" for work in ("start", "create", "restore", "destroy"))
    own = [task for task in tasks if task["id"] == guest and task["type"] in (start, *begins) and "status" in task]
    own.sort(key=lambda task: (task["starttime"], task["type"] == start, task["pstart"]), reverse=True)
    last = next((task for task in own if task["type"] == start or guest_tasks.is_well(task["status"])), None)
    if last is None or guest_tasks.is_well(last["status"]):
        return ""
    log = f"{guest_tasks.TASKS}/{last['upid'].split(':')[4][-1]}/{last['upid']}"  # by the last digit of its start
    content = system.files.read(log, _LOG_BYTES) or last["status"].encode()
    text = without_secrets(_COMMAND.sub(r"\1 …", as_text(content, _LOG_BYTES)))
    return "\n".join(text.rstrip("\n").split("\n")[-_LOG_LINES:])


def _nodes(system: System) -> Iterator[str]:
    for folder, begin in _DEVICES:
        for name in system.files.names(folder):
            if not name.startswith(begin):
                continue
            try:
                status = os.stat(system.files.at(f"{folder}/{name}"), follow_symlinks=False)
            except FileNotFoundError:  # it has gone meanwhile
                continue
            if stat.S_ISCHR(status.st_mode):
                numbers = f"{os.major(status.st_rdev):x} {os.minor(status.st_rdev):x} {stat.S_IMODE(status.st_mode):o}"
                yield f"{folder}/{name} {numbers} {status.st_uid} {status.st_gid} character special file"


def _containers(system: System, ids: tuple[int, ...]) -> Iterator[Container]:
    for id in ids:
        content = content_of(system, f"{PVE_LXC}/{id}.conf")
        if content is None:
            continue
        text = as_text(content)
        power = guests.power_of(system, "pct", str(id))
        inside = problem = ""
        if power == "on":
            arguments = ("exec", str(id), "--", "sh", "-c", installed.TEXTS["inspect_inside"])
            done = system.run.ask("pct", *arguments, seconds=_INSIDE_SECONDS, limit=_INSIDE_BYTES)
            inside = as_text(done.output + done.error, _INSIDE_BYTES).rstrip("\n")
            if done.status != 0:
                problem = f"exit status {done.status}: " + "\n".join(inside.split("\n")[-3:])
        keys = {match[0] for line in sections_of(text)[""] if (match := _OTHER_KEYS.match(line))}
        running = None if power == "unknown" else power == "on"
        yield Container(id, passed_on(text), tuple(sorted(keys)), running, inside, problem)
