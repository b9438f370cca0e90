"""A container engine: is it there, and has it taken over what was configured?"""

from __future__ import annotations

from remote_scripts.apt.apt import Apt
from remote_scripts.nvidia.engine_conf import RESTART
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

# Written by k3s at each of its starts, with the runtimes that it finds.
_K3S_CONFIG = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
_FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")


def tell_docker(apt: Apt, *, cdi: bool = False) -> bool:
    """Has docker take its configuration over, where that has changed; returns whether it had to. Runtimes it takes over
    as it runs (moby/moby, daemon/reload.go), and no container notices.

    :param cdi: it is to know CDI's names, which it learns when it starts.
    :raises Failure: it doesn't start; its configuration is as it was, and it was started with that.
    """
    system, files = apt.system, apt.system.files
    if not is_there(system, "docker"):
        files.done_with(RESTART)
    if not files.is_pending(RESTART):
        return False
    if cdi:
        system.log.say("restarting docker: containers of it that have no restart policy stay off (`docker ps -a`)")
    _tell(apt, "restart" if cdi else "reload-or-restart", "docker")
    # Not before: a run that fails puts the configuration back, which the next one has to have read.
    files.at_finish.append(lambda: files.done_with(RESTART))
    return True


def tell_k3s(apt: Apt) -> bool:
    """Restarts k3s where it hasn't found NVIDIA's runtime, which it looks for when it starts: its pods run on. Returns
    whether it had to.

    :raises Failure: it doesn't start.
    """
    system = apt.system
    unit = next((name for name in ("k3s", "k3s-agent") if _is_active(system, name)), "")
    if not unit or b"nvidia-container-runtime" in (system.files.need(_K3S_CONFIG) or b""):
        return False
    _tell(apt, "restart", unit)
    system.files.changed = True
    return True


def _tell(apt: Apt, verb: str, unit: str) -> None:
    system = apt.system
    done = apt.do("systemctl", verb, unit)
    if done.status == 0 and _is_active(system, unit):
        return
    journal = system.run.ask("journalctl", "-q", "--no-pager", "-n", "8", "-o", "cat", "-u", unit).text
    next = f"read `journalctl -xeu {unit}`, correct the cause, and run `pulumi up` again"
    if system.is_container:
        next = (
            f"a container needs features: nesting=1,keyctl=1 for {unit} (`pct set ID --features "
            "nesting=1,keyctl=1`, with those that `pct config ID` shows already: others go); else " + next
        )
    system.files.undo()
    system.run.do("systemctl", "restart", unit)
    raise Failure(
        f"{apt.software.context.name}: {unit}, started with NVIDIA's runtime in its configuration",
        "\n".join(filter(None, (done.text, journal))) or "no output",
        "it isn't running; its configuration was put back as it was",
        next,
    )


def _is_active(system: System, unit: str) -> bool:
    return system.run.ask("systemctl", "is-active", "-q", unit).status == 0


def is_there(system: System, engine: str) -> bool:
    """Whether an engine is installed, also where its packages are Docker's own. A client (docker-ce-cli) is none."""
    program = "dockerd" if engine == "docker" else engine
    return any(system.files.is_file(f"{folder}/{program}") for folder in _FOLDERS)
