"""NVIDIA's container toolkit, set up for one container engine that is there; its packages are another layer's.

Changes the engine's configuration, which it takes over if that changed, and a CDI specification. `revert` takes the
specification away; docker's configuration is given back byte for byte. Where a user has changed it
since, it loses our runtime. Whether containers get the cards the verification tries (layers/nvidia_verification.py).
"""

from __future__ import annotations

import re

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.packages import Reverted
from remote_scripts.both.container_toolkit import Answer, Wanted
from remote_scripts.nvidia import engine_conf, engines
from remote_scripts.nvidia.driver_installer import is_at_least
from remote_scripts.tools.system import System, changes

_REFRESH = "nvidia-cdi-refresh.service"
_SERVICES_CDI = "/run/cdi/nvidia.yaml"
_GENERATED = "/run/homelab/cdi.yaml"
_CDI_BYTES = 1 << 20


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Configures it.

    :raises Failure: the engine doesn't start, or nvidia-ctk can't do it.
    """
    files = system.files
    apt = Apt(system, wanted.software, engine_conf.LAYER, "container toolkit")
    if wanted.runtime == "docker":
        engine_conf.configure(system, wanted.software.context.name, cdi=bool(wanted.cdi))
    else:
        engine_conf.give_back(system)
    cdi = _make_specification(apt, wanted)
    told = engines.tell_docker(apt, cdi=wanted.runtime == "docker" and bool(wanted.cdi))
    if wanted.runtime == "k3s":
        told = engines.tell_k3s(apt) or told
    apt.note_step()
    version = apt.installed().present.get("nvidia-container-toolkit", "")
    return Answer(wanted.runtime, version, cdi, files.changed, told)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Takes it out.

    :raises Failure: apt can't do it, or an engine doesn't start.
    """
    files = system.files
    apt = Apt(system, wanted.software, engine_conf.LAYER, "container toolkit")
    if apt.is_anothers():
        return Reverted((), False)
    # A run that was cut short may have kept what is at the last one's place, and noted nothing.
    for path in sorted({*files.of_layer(engine_conf.LAYER), wanted.cdi} - {engine_conf.DOCKER, ""}):
        files.drop(engine_conf.LAYER, path)
    engine_conf.give_back(system)
    engines.tell_docker(apt)
    return apt.reverted()


# The specification.


def _make_specification(apt: Apt, wanted: Wanted) -> str:
    """It names the driver's libraries by their version, and the cards' nodes. One, and fresh: where the toolkit has a
    service for that (from 1.18 on, NVIDIA/nvidia-container-toolkit, deployments/systemd), its file in /run is it, which
    engines take before ours in /etc. The service runs at a boot and when modules are built; libraries that are added it
    doesn't see. In a container it does nothing.

    :returns: the path of the one that counts; empty where there is none.
    """
    system, files, there = apt.system, apt.system.files, apt.installed().whole
    toolkit, podman = there.get("nvidia-container-toolkit", ""), there.get("podman", "")
    needs_options = (
        podman and not is_at_least(wanted.podman_reads, podman) and is_at_least(wanted.options_since, toolkit)
    )
    options = wanted.cdi_options if wanted.runtime == "podman" and needs_options else ()
    # The service knows of no options: what it writes such a podman leaves out, and takes ours.
    by_service = not options and _refresh(system, wanted)
    keep = "" if by_service else wanted.cdi
    for path in files.of_layer(engine_conf.LAYER):
        if "/cdi/" in path and path != keep:
            files.drop(engine_conf.LAYER, path)
    if not keep:
        return _SERVICES_CDI if by_service else ""
    name, why = wanted.software.context.name, f"{wanted.runtime} needs it to give cards to containers"
    output = f"--output={files.name(_GENERATED)}"
    done = apt.do("nvidia-ctk", "cdi", "generate", *options, output)
    if done.status != 0:
        next = "`nvidia-smi` there must work first; then run `pulumi up` again"
        apt.explain(done, f"{name}: a CDI specification of its cards", why, next)
    content = files.need(_GENERATED, _CDI_BYTES) or b""
    files.remove(_GENERATED)
    files.put(engine_conf.LAYER, keep, 0o644, content.rstrip(b"\n") + b"\n")
    return keep


def _refresh(system: System, wanted: Wanted) -> bool:
    """Has the toolkit's service make its file anew. False: there is no such service, or it makes none of this driver,
    as it finds no module, or is set to another place.
    """
    if wanted.target == "lxc" or system.run.ask("systemctl", "cat", _REFRESH).status != 0:
        return False
    system.log.say("having the toolkit's own service make the CDI specification again")
    before = system.files.read(_SERVICES_CDI, _CDI_BYTES)
    system.run.do("systemctl", "restart", _REFRESH)
    made = system.files.read(_SERVICES_CDI, _CDI_BYTES) or b""
    system.files.changed |= made != before
    return bool(re.search(rb"\.so\." + re.escape(wanted.driver.encode()) + rb"$", made, re.MULTILINE))
