"""A service of ours that starts at each boot, and the program that it runs, if it has one.

The program is an archive with the modules of a layer, and calls the layer's `program`: it needs nothing of the folder
where a stack keeps the agent, and is of the version that the layer was when it put it there. Where Python is broken the
service fails, as any other, and the host starts its guests.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

from remote_scripts.tools import modules
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: Before the path of the agent, or of a program: without what whoever logs in has in the environment or in
#: site-packages, and without writing bytecode.
PYTHON = "/usr/bin/python3 -I -S -B -X utf8"
_UNITS = "/etc/systemd/system"
_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """`name`: of the unit, without `.service`, and of its program; `layer`: under which its files are noted; `unit`:
    the unit's text; `module`: the layer whose `program` it runs, empty where it has none of ours; `without`: what is
    so without it.
    """

    name: str
    layer: str
    unit: str
    without: str
    module: str = ""

    @property
    def program(self) -> str:
        """The program's path."""
        return f"/usr/local/sbin/{self.name}"

    @property
    def file(self) -> str:
        """The unit's path."""
        return f"{_UNITS}/{self.name}.service"

    @property
    def link(self) -> str:
        """What `systemctl enable` makes."""
        return f"{_UNITS}/multi-user.target.wants/{self.name}.service"


def install(system: System, service: Service) -> None:
    """Puts it there and enables it; it isn't started. A plan has the same.

    :raises Failure: systemd doesn't read it.
    """
    files = system.files
    before, files.changed = files.changed, False
    if service.module:
        files.put(service.layer, service.program, 0o755, program(service.module))
    files.put(service.layer, service.file, 0o644, service.unit.encode())
    if not files.at(service.link).is_symlink():
        if files.planning:
            files.plan_file("new", service.link)
            return
        # As `systemctl enable` does it.
        files.about_to_change()
        files.make_folder(service.link.rpartition("/")[0])
        files.remember(service.link)
        files.write_link(service.file, service.link)
        files.changed = True
    if not files.planning and (files.changed or _is_outdated(system, service)):
        done = system.run.do("systemctl", "daemon-reload", seconds=_SECONDS)
        if done.status != 0:
            raise Failure(
                f"{service.name}.service enabled",
                done.text,
                service.without,
                "correct what systemctl says, then run `pulumi up` again",
            )
    files.changed |= before


def drop(system: System, service: Service) -> None:
    """Takes it away; what it has done stays. A plan has the same."""
    files = system.files
    before, files.changed = files.changed, False
    if files.exists(service.link) and not files.planning:  # a power cut may have made it an empty file
        files.about_to_change()
        files.remember(service.link)
        files.remove(service.link)
        files.changed = True
    files.drop(service.layer, service.file)
    if service.module:
        files.drop(service.layer, service.program)
    if files.changed and not files.planning:
        done = system.run.do("systemctl", "daemon-reload", seconds=_SECONDS)
        if done.status != 0:
            system.log.say(f"systemctl daemon-reload failed: {service.name}.service is known until the next boot")
    files.changed |= before


def program(layer: str) -> bytes:
    """An executable archive, which calls the `program` of a layer with its arguments: the same bytes each time."""
    names = modules.needed(modules.AGENT, f"{modules.PACKAGE}.layers.{layer}")
    texts = {name: modules.source(name) for name in names}
    texts["__main__"] = (
        f"import sys\nfrom {modules.PACKAGE} import agent\nsys.exit(agent.program({layer!r}, sys.argv[1:]))\n"
    )
    return b"#!/usr/bin/python3 -ISBXutf8\n" + modules.packed(texts, zipfile.ZIP_STORED)


def _is_outdated(system: System, service: Service) -> bool:
    """Whether systemd knows it as it was before, such as where an earlier run was cut short behind the file."""
    asked = system.run.ask("systemctl", "show", "-p", "NeedDaemonReload", "--value", f"{service.name}.service")
    return asked.text == "yes"
