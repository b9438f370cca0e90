"""A service of homelab's that starts at each boot, and by a timer, if it has one; and the program that it runs, if any.

The program is an archive with the modules of a layer, and calls the layer's `program`. It doesn't need the folder in
which a stack keeps the agent, and keeps the version of the layer that installed it. Where Python is broken the service
fails, as any other, and the host starts its guests.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from remote_scripts import installed
from remote_scripts.tools import modules
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import GREATEST_BYTES
from remote_scripts.tools.places import HOME
from remote_scripts.tools.places import PYTHON as PYTHON
from remote_scripts.tools.system import System

UNITS = "/etc/systemd/system"
_WANTED_BY = {"service": "multi-user.target", "timer": "timers.target"}
_SECONDS = 60.0
#: A program ends with the digest of its sources, in so many digits: of one source, two agents' bytecode may differ.
_DIGEST = 64
_UNIT = """\
# Written by homelab, which takes it away again (pulumi destroy).
{text}
[Install]
WantedBy={target}
"""


@dataclass(frozen=True, kw_only=True)
class Service:
    """`name`: of the unit, without `.service`, and of its program; `layer`: under which its files are noted; `unit`:
    the unit's sections [Unit] and [Service]; `timer`: those of its timer, if it has one; `module`: the layer whose
    `program` it runs, empty where it runs none; `without`: what is lacking where it isn't enabled, for messages.
    """

    name: str
    layer: str
    unit: str
    without: str
    module: str = ""
    timer: str = ""

    @property
    def program(self) -> str:
        """The program's path."""
        return f"/usr/local/sbin/{self.name}"

    @property
    def units(self) -> dict[str, str]:
        """The units' names -> their texts."""
        texts = {"service": self.unit, "timer": self.timer}
        whole = {kind: _UNIT.format(text=text, target=_WANTED_BY[kind]) for kind, text in texts.items() if text}
        return {f"{self.name}.{kind}": text for kind, text in whole.items()}

    @property
    def links(self) -> dict[str, str]:
        """What `systemctl enable` makes -> where it leads."""
        return {f"{UNITS}/{_WANTED_BY[name.rpartition('.')[2]]}.wants/{name}": f"{UNITS}/{name}" for name in self.units}


def serve(system: System, service: Service, *, needed: bool) -> None:
    """Puts it there and enables it, without starting it; or takes it away, and what it has done stays. A plan has the
    same.

    :raises Failure: systemd doesn't read what was put there.
    """
    files = system.files
    before, files.changed = files.changed, False
    (_put if needed else _drop)(system, service)
    if not files.planning and (files.changed or (needed and _is_outdated(system, service))):
        done = system.run.do("systemctl", "daemon-reload", seconds=_SECONDS)
        if done.status != 0 and needed:
            raise Failure(
                f"{service.name}.service enabled",
                done.text,
                service.without,
                "correct what systemctl says, then run `pulumi up` again",
            )
        if done.status != 0:
            system.log.say(f"systemctl daemon-reload failed: {service.name}.service is known until the next boot")
    files.changed |= before


def _put(system: System, service: Service) -> None:
    files = system.files
    if service.module:
        content, there = program(service.module), files.read(service.program, GREATEST_BYTES) or b""
        is_same = there[-_DIGEST:] == content[-_DIGEST:] and files.state(service.layer, service.program) == "ok"
        files.put(service.layer, service.program, 0o755, there if is_same else content)
    for name, text in service.units.items():
        files.put(service.layer, f"{UNITS}/{name}", 0o644, text.encode())
    for link, path in service.links.items():
        if files.at(link).is_symlink():
            continue
        if files.planning:
            files.plan_file("new", link)
            continue
        files.about_to_change()
        files.make_folder(link.rpartition("/")[0])
        files.remember(link)
        files.write_link(path, link)  # as `systemctl enable` does it
        files.changed = True


def _drop(system: System, service: Service) -> None:
    files = system.files
    for link in service.links:
        if files.exists(link) and not files.planning:  # a power cut may have made it an empty file
            files.about_to_change()
            files.remember(link)
            files.remove(link)
            files.changed = True
    for name in service.units:
        files.drop(service.layer, f"{UNITS}/{name}")
    if service.module:
        files.drop(service.layer, service.program)


def _is_outdated(system: System, service: Service) -> bool:
    """Whether systemd knows a unit as it was before, such as where an earlier run was cut short behind the file."""
    shows = ("systemctl", "show", "-p", "NeedDaemonReload", "--value")
    return any(system.run.ask(*shows, unit).text == "yes" for unit in service.units)


@dataclass(frozen=True)
class Timer:
    """A timer for what the next boots wait for, which goes once that has come. No layer has its files. `name`: of its
    units; `program`: the path of what its service runs.
    """

    name: str
    program: str

    @property
    def paths(self) -> tuple[str, str, str, str]:
        """The link that enables it, its units, and its program: they go in this order."""
        unit = f"{UNITS}/{self.name}"
        return f"{UNITS}/timers.target.wants/{self.name}.timer", f"{unit}.timer", f"{unit}.service", self.program

    def put(self, system: System, timer: str, service: str, program: bytes) -> None:
        """Puts it there, enabled for the next boot: systemd isn't told of it in this one. Who has the lock remembers
        its paths before, where they are to be undone.

        :raises OSError: it can't be written.
        """
        files, (link, *paths) = system.files, self.paths
        files.need_folder(HOME)
        for path, content in zip(reversed(paths), (program, service.encode(), timer.encode()), strict=True):
            if files.need(path) != content:
                files.make_folder(path.rpartition("/")[0])
                files.write(path, content, 0o700 if path == self.program else 0o644)
        if not files.is_link(link):
            files.make_folder(link.rpartition("/")[0])
            files.write_link(paths[0], link)

    def remove(self, system: System) -> None:
        """Stops it, and takes it away. Where its service is at work, that goes on to its end. systemd isn't told to
        read its units again: of one whose file isn't found while it runs it forgets which ends are a success.
        """
        if system.files.exists(f"{UNITS}/{self.name}.timer"):
            done = system.run.do("systemctl", "stop", f"{self.name}.timer", seconds=_SECONDS)
            if done.status != 0:
                system.log.say(f"{self.name}.timer could not be stopped: {done.text}")
        system.files.remove(*self.paths)


def program(layer: str) -> bytes:
    """An executable archive, which calls the `program` of a layer with its arguments."""
    names = modules.needed(modules.AGENT, f"{modules.PACKAGE}.layers.{layer}")
    if f"{modules.PACKAGE}.notes.owed" in names:  # which makes a program of this one
        names |= modules.needed(f"{modules.PACKAGE}.layers.start_guests")
    # The module of texts has none of its own but in the agent's archive.
    texts = {name: modules.source(name) for name in names} | {
        installed.__name__: f"TEXTS = {dict(installed.TEXTS)!r}\n"
    }
    texts["__main__"] = (
        f"import sys\nfrom {modules.PACKAGE} import agent\nsys.exit(agent.program({layer!r}, sys.argv[1:]))\n"
    )
    digest = sha256(repr(sorted(texts.items())).encode()).hexdigest()
    return b"#!/usr/bin/python3 -ISBXutf8\n" + modules.packed(texts, digest, compiled=True)
