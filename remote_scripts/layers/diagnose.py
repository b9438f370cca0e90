"""What a diagnosis needs besides the host's reading: drivers' majors, containers' configurations and insides, and what
a VM's start would find. Changes nothing, and so runs no nvidia-smi, which as root loads modules and makes nodes; but
for a start, of a card that the driver has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from remote_scripts import installed
from remote_scripts.both.diagnose import Answer, ContainerInside, Wanted
from remote_scripts.cards import card_start
from remote_scripts.pve import api, guest_tasks, guests
from remote_scripts.pve.container_conf import passed_on
from remote_scripts.pve.guest_kinds import CONTAINER, VM
from remote_scripts.pve.pmxcfs import PVE_LXC
from remote_scripts.tools.container import ContainerSystem
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text, without_secrets

# How long a container may take to be looked into, in seconds: a hung one must not hide what is known without it.
# Opening a card that isn't in use takes its driver a second or two.
_INSIDE_SECONDS = 25.0
_INSIDE_BYTES = 1 << 20
_DMI = "/sys/class/dmi/id"
_MACHINE = (("sys_vendor", "product_name"), ("board_vendor", "board_name"))
_MODEL = re.compile(r"^model name\s*:(.*)$", re.MULTILINE)
_LOG_BYTES, _LOG_LINES = 1 << 20, 20
_COMMAND = re.compile(r"(command '\S+) (?:.*(?=' failed)|.*)")
# Types of the tasks that start a guest, and of those that leave it off, or put another in its place.
_STARTS = (*VM.starts, *CONTAINER.starts)
_ENDS = (*VM.stops, *VM.replaces, *CONTAINER.stops, *CONTAINER.replaces)


def read(system: System, wanted: Wanted) -> Answer:
    """Looks at all of it.

    :raises Failure: a configuration in /etc/pve can't be read.
    """
    return Answer(
        machine=_machine(system),
        processor=_processor(system),
        failed_starts=_failed_starts(system),
        char_devices=system.files.text("/proc/devices"),
        containers=tuple(_containers(system, wanted.containers)),
        starts=card_start.of_vm(system, str(wanted.vm)) if wanted.vm else (),
    )


def _machine(system: System) -> str:
    """No serial number: the files with these have other names."""
    pairs = ([system.files.text(f"{_DMI}/{name}").strip() for name in names] for names in _MACHINE)
    return "; board: ".join(filter(None, dict.fromkeys(" ".join(filter(None, pair)) for pair in pairs)))


def _processor(system: System) -> str:
    match = _MODEL.search(system.files.text("/proc/cpuinfo"))
    return match[1].strip() if match else ""


def _failed_starts(system: System) -> dict[str, str]:
    """Of a guest whose last task that switched it, or replaced it, is that start."""
    try:
        tasks: list[dict[str, Any]] = api.of(system).get("/tasks", source="archive", limit=guest_tasks.MOST)
    except Failure:  # all else is said without them
        return {}
    last: dict[str, dict[str, Any]] = {}
    for task in sorted(tasks, key=lambda task: (task["starttime"], task["pstart"])):
        status = task.get("status", "")
        types = _STARTS + _ENDS if guest_tasks.is_well(status) else _STARTS
        # A start of one that runs says nothing of one that is off.
        if task["type"] in types and status and not status.endswith("already running"):
            last[task["id"]] = task
    return {guest: _log_of(system, task) for guest, task in last.items() if not guest_tasks.is_well(task["status"])}


def _log_of(system: System, task: dict[str, Any]) -> str:
    """Without the command line of QEMU, which is long and has options of the owner's."""
    log = f"{guest_tasks.TASKS}/{task['upid'].split(':')[4][-1]}/{task['upid']}"  # by the last digit of its start
    content = system.files.read(log, _LOG_BYTES) or task["status"].encode()
    text = without_secrets(_COMMAND.sub(r"\1 …", as_text(content, _LOG_BYTES)))
    return "\n".join(text.rstrip("\n").split("\n")[-_LOG_LINES:])


def _containers(system: System, ids: tuple[int, ...]) -> Iterator[ContainerInside]:
    for id in ids:
        content = system.files.need(f"{PVE_LXC}/{id}.conf")
        if content is None:
            continue
        power = guests.power_of(system, "pct", str(id))
        inside = problem = ""
        if power == "on":
            words = ("sh", "-c", installed.TEXTS["inspect_inside"])
            try:
                done = ContainerSystem(id, system).run.ask(*words, seconds=_INSIDE_SECONDS, limit=_INSIDE_BYTES)
                inside = as_text(done.output + done.error, _INSIDE_BYTES).rstrip("\n")
                if done.status != 0:
                    problem = f"exit status {done.status}: " + "\n".join(inside.split("\n")[-3:])
            except Failure as failure:
                problem = failure.found
        running = None if power == "unknown" else power == "on"
        yield ContainerInside(id, passed_on(as_text(content)), running, inside, problem)
