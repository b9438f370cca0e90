"""A container engine: is it there, and does it run with what was configured? Restarted only for that."""

from __future__ import annotations

from typing import NoReturn

from remote_scripts.apt.apt import Apt
from remote_scripts.nvidia.engine_conf import RESTART
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

# Written by k3s at each of its starts, with the runtimes that it finds.
_K3S_CONFIG = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
# How long k3s may take until it has written that, in seconds.
_K3S_SECONDS = 120.0
_FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")
# The containers of docker's that a restart stops, until they are started again.
_STOPPED = f"{HOME}/docker-stopped"


class Engines:
    """The engines of a system, for the layer of the container toolkit.

    :param is_container: whether the system is one.
    """

    def __init__(self, apt: Apt, *, is_container: bool) -> None:
        self._apt = apt
        self._system = apt.system
        self._name = apt.software.context.name
        self._is_container = is_container
        #: Whether one was restarted.
        self.restarted = False

    def restart_docker(self) -> None:
        """Where its configuration has changed, and it is still there. Its containers stop with it, unless it has
        live-restore; those that ran are started again.

        :raises Failure: it doesn't start; its configuration is as it was, and it was started with that. Or it doesn't
            say which containers run.
        """
        files = self._system.files
        if not is_there(self._system, "docker"):
            files.remove(_STOPPED)
            files.done_with(RESTART)
        if not files.is_pending(RESTART):
            return
        self._note_running()
        done = self._apt.do("systemctl", "restart", "docker")
        if done.status != 0 or not self._is_active("docker"):
            self._give_up("docker", done)
        self._start_stopped()
        self.restarted = True
        # Not before: a run that fails puts the configuration back, which the next one has to have read.
        files.at_finish.append(lambda: files.done_with(RESTART))

    def restart_k3s(self) -> None:
        """It looks for NVIDIA's runtime when it starts, and at no other time.

        :raises Failure: it isn't at work, doesn't start, or doesn't find it.
        """
        if self._k3s_knows_nvidia():
            return
        unit = next((name for name in ("k3s", "k3s-agent") if self._is_active(name)), "")
        if not unit:
            raise Failure(
                f"{self._name}: k3s at work",
                "neither k3s nor k3s-agent is active",
                "it finds NVIDIA's runtime when it starts",
                "start it, and see `journalctl -xeu k3s` (k3s-agent); then run `pulumi up` again",
            )
        self._system.log.say(f"restarting {unit}, which looks for NVIDIA's runtime when it starts: its pods run on")
        done = self._apt.do("systemctl", "restart", unit)
        if done.status != 0:
            self._give_up(unit, done)
        for _ in self._system.work.tries(_K3S_SECONDS, "waiting for k3s"):
            if self._k3s_knows_nvidia() or not self._is_active(unit):
                break
        self.restarted = self._system.files.changed = True
        if not self._k3s_knows_nvidia():
            raise Failure(
                f"{self._name}: k3s's containerd with the runtime nvidia",
                f"{_K3S_CONFIG} has none after a restart of k3s",
                "a pod with the runtime class nvidia doesn't start",
                'a config.toml.tmpl of your own beside it must have `{{ template "base" . }}`, by which k3s fills in '
                "what it finds; see `journalctl -xeu k3s` (k3s-agent), then run `pulumi up` again",
            )

    def _note_running(self) -> None:
        """Notes the containers of docker's that stop with it, beside those that a run which was cut short had noted.

        :raises Failure: docker is at work, and doesn't say them.
        """
        system = self._system
        done = system.run.ask("docker", "ps", "--format", "{{.Names}}")
        if done.status != 0 and self._is_active("docker"):
            wanted = f"{self._name}: which containers run, before docker is restarted"
            self._apt.explain(done.failure("docker"), wanted, "those that it stops are started again")
        running = done.text.split() if done.status == 0 else []
        system.log.say(f"restarting docker; its containers run again afterwards: {' '.join(running) or 'none'}")
        if names := dict.fromkeys([*self._stopped(), *running]):
            system.files.note(_STOPPED, "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))

    def _stopped(self) -> list[str]:
        return self._system.files.need_text(_STOPPED).split()

    def _start_stopped(self) -> None:
        """Those with a restart policy are up again already, and with live-restore all of them."""
        for name in self._stopped():
            if self._system.run.do("docker", "start", name).status != 0:
                self._system.log.say(f"note: container {name} isn't there any more (--rm), or doesn't start")
        self._system.files.remove(_STOPPED)

    def _is_active(self, unit: str) -> bool:
        return self._system.run.ask("systemctl", "is-active", "-q", unit).status == 0

    def _k3s_knows_nvidia(self) -> bool:
        return b"nvidia-container-runtime" in (self._system.files.need(_K3S_CONFIG) or b"")

    def _give_up(self, unit: str, done: Done) -> NoReturn:
        """What was there before is put back, and the engine started with that."""
        system = self._system
        journal = system.run.ask("journalctl", "-q", "--no-pager", "-n", "8", "-o", "cat", "-u", unit).text
        next = f"read `journalctl -xeu {unit}`, correct the cause, and run `pulumi up` again"
        if self._is_container:
            next = (
                f"a container needs features: nesting=1,keyctl=1 for {unit} (`pct set ID --features "
                "nesting=1,keyctl=1`, with those that `pct config ID` shows already: others go); else " + next
            )
        system.files.undo()
        if system.run.do("systemctl", "restart", unit).status == 0 and unit == "docker":
            self._start_stopped()
        raise Failure(
            f"{self._name}: {unit}, started with NVIDIA's runtime in its configuration",
            "\n".join(filter(None, (done.text, journal))) or "no output",
            "it isn't running; its configuration was put back as it was",
            next,
        )


def is_there(system: System, engine: str) -> bool:
    """Whether an engine is installed, also where its packages are Docker's own. A client (docker-ce-cli) is none."""
    program = "dockerd" if engine == "docker" else engine
    return any(system.files.is_file(f"{folder}/{program}") for folder in _FOLDERS)
