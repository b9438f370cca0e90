"""NVIDIA's container toolkit, for one container engine that is there.

Changes packages, the engine's configuration (it is restarted if that changed), and a CDI specification. `revert` undoes
the packages and the specification; a configuration is given back byte for byte. Where a user has changed it since,
docker's loses our runtime, and containerd's own file stays as it is: our drop-in goes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import engine_conf
from remote_scripts.shared.engines import Engines
from remote_scripts.shared.packages import Packages, Reverted, Software
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System, changes

_LAYER = engine_conf.LAYER
_REFRESH = "nvidia-cdi-refresh.service"
_SERVICES_CDI = "/run/cdi/nvidia.yaml"
# What a specification was made for.
_MADE_FOR = f"{HOME}/toolkit-cdi"
_GENERATED = "/run/homelab/cdi.yaml"
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_ALL = re.compile(rb'^ *-? *name: "?all"?$', re.MULTILINE)
_CDI_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`target`: what the system is; `install`: the engine's package if it may be installed, else empty; `configure`:
    the command that does it; `restart`: a unit, or empty; `cdi`: the path of a CDI specification, or empty;
    `cdi_options`: of nvidia-ctk, so that an older podman reads it; `driver`: the version that the specification is made
    for; `capabilities`: no part in what happens, another one makes the specification anew.
    """

    target: Literal["vm", "host", "lxc"]
    runtime: Literal["docker", "containerd", "podman", "k3s"]
    software: Software
    packages: tuple[str, ...]
    driver: str
    install: str = ""
    configure: tuple[str, ...] = ()
    restart: str = ""
    cdi: str = ""
    cdi_options: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`version`: the toolkit's; `cdi`: the path of the specification that counts, or empty."""

    runtime: str
    version: str
    cdi: str
    changed: bool
    restarted: bool


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Installs and configures it.

    :raises Failure: the engine isn't there, or doesn't start; apt or nvidia-ctk can't do it.
    """
    files = system.files
    packages, engines = _parts(system, wanted)
    engines.need(wanted.runtime, wanted.install)
    packages.install(wanted.packages)
    for other in engine_conf.FILES:
        if other != wanted.runtime:
            _give_back(system, other)
    engines.restart_others(wanted.runtime)
    _configure(packages, wanted)
    cdi = _make_specification(packages, wanted)
    engines.restart(wanted.restart)
    if wanted.runtime == "k3s":
        engines.restart_k3s()
    engines.check(wanted.runtime)
    packages.note_step()
    version = packages.installed().present.get("nvidia-container-toolkit", "")
    return Answer(wanted.runtime, version, cdi, files.changed, engines.restarted)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Takes it out.

    :raises Failure: apt can't do it, or an engine doesn't start.
    """
    files = system.files
    packages, engines = _parts(system, wanted)
    if packages.is_anothers():
        return Reverted((), False)
    for path in files.of_layer(_LAYER):
        if not any(path in paths for paths in engine_conf.FILES.values()):
            files.drop(_LAYER, path)
    files.remove(_MADE_FOR)
    for engine in engine_conf.FILES:
        _give_back(system, engine)
    packages.remove()
    # What its service has made means nothing without it.
    if not files.exists("/usr/bin/nvidia-ctk"):
        files.remove(_SERVICES_CDI)
    engines.restart_others()
    return packages.reverted()


def _parts(system: System, wanted: Wanted) -> tuple[Packages, Engines]:
    packages = Packages(system, wanted.software, _LAYER, "container toolkit")
    return packages, Engines(packages, is_container=wanted.target == "lxc")


# The engine's configuration.


def _configure(packages: Packages, wanted: Wanted) -> None:
    """Only what changes the meaning of the configuration leads to a restart."""
    if not wanted.configure:
        return
    system, files = packages.system, packages.system.files
    # Containers ask the engine itself for CDI's names, which docker 25 to 28.2 must be told to know.
    command = (*wanted.configure, *(("--cdi.enabled",) if wanted.cdi else ()))
    paths = engine_conf.FILES.get(wanted.runtime, ())
    step = f"restart-{wanted.runtime}"
    was_pending = files.is_pending(step)
    files.set_pending(step)
    for path in paths:
        engine_conf.begin_change(system, path)
    done = packages.do(*command)
    if done.status != 0:
        packages.explain(
            done,
            f"{wanted.software.context.name}: {wanted.runtime} configured by `{' '.join(command)}`",
            "without it no container gets a card",
            f"correct {' '.join(paths)} as the lines above say, then run `pulumi up` again",
        )
    changed = [engine_conf.end_change(system, path) for path in paths]
    files.changed |= any(changed)
    if not any(changed) and not was_pending:
        files.done_with(step)


def _give_back(system: System, engine: str) -> None:
    """Of an engine that isn't, or is no longer, meant."""
    for path in engine_conf.FILES[engine]:
        if engine_conf.state(system, path) != "absent":
            system.files.set_pending(f"restart-{engine}")
        system.files.changed |= engine_conf.give_back(system, path)


# The specification.


def _make_specification(packages: Packages, wanted: Wanted) -> str:
    """It names the driver's libraries by their version, and the cards' nodes. One, and fresh: where the toolkit has a
    service for that (from 1.18 on, NVIDIA/nvidia-container-toolkit, deployments/systemd), its file in /run is it, which
    engines take before ours in /etc. The service runs at a boot and when modules are built; libraries that are added it
    doesn't see. In a container it does nothing.

    :returns: the path of the one that counts; empty where there is none.
    """
    system, files = packages.system, packages.system.files
    made_for = _what_for(system, wanted)
    keep = wanted.cdi
    # The service knows of no options: what it writes such a podman leaves out, and takes ours.
    if not wanted.cdi_options and _has_service(system, wanted) and _refresh(system, wanted, made_for):
        keep = ""
    for path in files.of_layer(_LAYER):
        if "/cdi/" in path and path != keep:
            files.drop(_LAYER, path)
    if not keep:
        if _is_fresh(system, wanted, made_for):
            return _SERVICES_CDI
        files.remove(_MADE_FOR)
        return wanted.cdi
    if keep in files.of_layer(_LAYER):
        if files.state(_LAYER, keep) == "ok" and files.text(_MADE_FOR) == made_for:
            return keep
    elif _serves(files.need(keep, _CDI_BYTES) or b"", wanted):
        system.log.say(f"note: {keep} is there, for driver {wanted.driver}: left as it is")
        return keep
    name, why = wanted.software.context.name, f"{wanted.runtime} needs it to give cards to containers"
    files.need_folder(_GENERATED.rpartition("/")[0])
    output = f"--output={files.name(_GENERATED)}"
    done = packages.do("nvidia-ctk", "cdi", "generate", *wanted.cdi_options, output)
    if done.status != 0:
        next = "`nvidia-smi` there must work first; then run `pulumi up` again"
        packages.explain(done, f"{name}: a CDI specification of its cards", why, next)
    content = files.need(_GENERATED, _CDI_BYTES) or b""
    files.remove(_GENERATED)
    if not _ALL.search(content):
        raise Failure(
            f"{name}: a CDI specification of its cards",
            "nvidia-ctk found none",
            why,
            "look at `nvidia-smi -L` there, and at its nodes in /dev, then run `pulumi up` again",
        )
    files.put(_LAYER, keep, 0o644, content.rstrip(b"\n") + b"\n")
    files.note(_MADE_FOR, f"{made_for}\n".encode())
    return keep


def _what_for(system: System, wanted: Wanted) -> str:
    """The driver, its libraries (those of video may have come later than the driver), the nodes, the options."""
    listed = system.run.ask(
        "find", system.files.name(_LIBRARIES), "-name", f"*.so.{wanted.driver}", "-printf", "%f\\n", limit=_CDI_BYTES
    )
    libraries = "\n".join(sorted(listed.text.split("\n")))
    nodes = [name for name in system.files.names("/dev") if re.fullmatch("nvidia[0-9].*", name)]
    digest = hashlib.sha256(libraries.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return " ".join((wanted.driver, digest, *nodes, *wanted.cdi_options))


def _names(specification: bytes, driver: str) -> bool:
    """Whether it names libraries of this driver."""
    return bool(re.search(rb"\.so\." + re.escape(driver.encode()) + rb"$", specification, re.MULTILINE))


def _serves(theirs: bytes, wanted: Wanted) -> bool:
    """Whether a user's specification is of this driver, and of a form that this podman reads."""
    return _names(theirs, wanted.driver) and not (wanted.cdi_options and b"additionalGids" in theirs)


def _has_service(system: System, wanted: Wanted) -> bool:
    return wanted.target != "lxc" and system.run.ask("systemctl", "cat", _REFRESH).status == 0


def _is_fresh(system: System, wanted: Wanted, made_for: str) -> bool:
    """Whether the service's is of this driver and all of its libraries."""
    files = system.files
    return files.text(_MADE_FOR) == made_for and _names(files.need(_SERVICES_CDI, _CDI_BYTES) or b"", wanted.driver)


def _refresh(system: System, wanted: Wanted, made_for: str) -> bool:
    """Has the service make its file anew, unless it is fresh. False: it makes none, as it finds no module, or is set to
    another place.
    """
    if _is_fresh(system, wanted, made_for):
        return True
    system.log.say("having the toolkit's own service make the CDI specification again")
    done = system.run.do("systemctl", "restart", _REFRESH)
    if done.status != 0:
        system.log.say(f"note: {_REFRESH} failed: {done.text}")
    system.files.note(_MADE_FOR, f"{made_for}\n".encode())
    if not _is_fresh(system, wanted, made_for):
        system.files.remove(_MADE_FOR)
        return False
    system.files.changed = True
    return True
