"""The lab's systems as the layers of NVIDIA's stack meet them: a VM, a host, a container; without SSH and the engine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from homelab.nvidia import plan as planning
from homelab.nvidia.compatibility import Target
from homelab.nvidia.request import Request
from homelab.nvidia.settings import Nvidia
from homelab.nvidia.verification import judge
from homelab.nvidia.work import tried
from homelab.reading import systems
from homelab.remote.scripts import answer
from lab.api.guest_system import environment_of
from remote_scripts.both import nvidia_verification, read_system
from remote_scripts.both.nvidia_packages import Answer
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.tools.plain import of_plain
from tests import forked_agent
from tests.boot_layers import Asked
from tests.lab.guest_kit import NODES, Vm, emptied, other_card, scenario
from tests.lab.host_kit import Host, ran, succeeded

#: What NVIDIA's repository has of branch 580.
VERSION = "580.178.04"
# What a VM can have installed.
GUESTS = ("ubuntu-24.04", "ubuntu-22.04", "ubuntu-26.04", "debian-12", "debian-13")


class Machine:
    """One system of a lab. ``root``: its tree; ``host``: the lab's host."""

    target: Target
    #: Of a container.
    ctid = 0

    def __init__(self, host: Host, root: Path, bash: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
        #: A person's commands on it.
        self.bash = bash
        self.host, self.root = host, root
        self.settings = Nvidia()

    # -- running ----------------------------------------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        """Of the commands that run the scripts."""
        return self.host.machine.environment()

    def run(self, verb: str, script: Asked) -> subprocess.CompletedProcess[str]:
        """A script, run to its end."""
        return self.layer(verb, script.layer, script.wanted)

    def answer(self, verb: str, script: Asked) -> dict[str, Any]:
        """What a script that must succeed answers."""
        done = self.run(verb, script)
        assert done.returncode == 0, done.stdout + done.stderr
        return answer(done.stdout)

    def refusal(self, script: Asked, verb: str = "apply") -> str:
        """The message of a script that must fail, of the four lines that it has."""
        done = self.run(verb, script)
        assert done.returncode == 1, done.stdout + done.stderr
        lines = [line.partition(":")[0] for line in done.stdout.splitlines()]
        assert (lines[0], *lines[-2:]) == ("wanted", "why", "next"), done.stdout
        return done.stdout

    def output(self, text: str) -> str:
        """What a person's commands print, which must succeed."""
        return succeeded(text, self.bash(text))

    def fault(self, name: str, value: Any = True) -> None:
        """Set a fault of the lab; None takes it back."""
        self.host.machine.set_fault(name, value)

    # -- the steps --------------------------------------------------------------------------------------------
    def want(self, **settings: Any) -> None:
        """The settings from now on."""
        self.settings = Nvidia.model_validate(settings)

    def layer(self, verb: str, layer: str, wanted: Any) -> subprocess.CompletedProcess[str]:
        """A layer of the agent."""
        return forked_agent.asked(self.environment(), verb, layer, wanted, ctid=self.ctid)

    def verify(self, wanted: nvidia_verification.Wanted) -> nvidia_verification.Answer:
        """What the stack is seen to do."""
        return of_plain(nvidia_verification.Answer, self.answer("apply", Asked("nvidia_verification", wanted)))

    def read(self, **wanted: Any) -> SystemReading:
        """A reading."""

        def ask(verb: str, layer: str, asked: object) -> dict[str, Any]:
            return self.answer(verb, Asked(layer, asked))

        return systems.asked(ask, read_system.Wanted(**wanted))

    def request(self) -> Request:
        """What follows from settings and a reading."""
        return Request.of(self.target, self.settings, "it", self.read())

    def packages_step(self, **settings: Any) -> Asked:
        """Driver, CUDA, toolkit: the first step."""
        if settings:
            self.want(**settings)
        return Asked("nvidia_packages", planning.wanted(self.request()))

    def install(self, **settings: Any) -> dict[str, Any]:
        """The first step; its answer."""
        return self.answer("apply", self.packages_step(**settings))

    def undo(self) -> dict[str, Any]:
        """Its way back."""
        return self.answer("revert", self.packages_step())

    def installed(self, version: str, capabilities: Sequence[str] = ()) -> Answer:
        """What the first step would answer that has left this driver."""
        return Answer(
            version=version,
            source="packages",
            flavour=None if self.target == "lxc" else "open",
            capabilities=tuple(capabilities),
            reboot="no",
            why="",
            cuda="",
            toolkit="",
            packages=(),
            changed=False,
        )

    def toolkit_step(self, version: str, capabilities: Sequence[str] = ()) -> Asked:
        """The container toolkit's, after the first one, which has left this driver."""
        runtime, installed = self.settings.container_toolkit or "docker", self.installed(version, capabilities)
        return Asked("container_toolkit", planning.toolkit(runtime, self.request(), installed))

    # -- what is there ----------------------------------------------------------------------------------------
    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of every file that stays over a reboot, but for logs, lists of packages, and the key that DKMS makes once."""
        found = {}
        passing = tuple(
            [
                "run",
                "proc",
                "sys",
                "dev",
                "tmp",
                "var/log",
                "var/lib/apt/lists",
                "var/cache",
                "var/lib/dpkg/",
                "var/lib/dkms/mok.pub",
            ]
        )
        for place in sorted(self.root.rglob("*")):
            name = place.relative_to(self.root).as_posix()
            if name.startswith(passing):
                continue
            if place.is_symlink():
                found[name] = (0, str(place.readlink()).encode())
            elif place.is_file():
                found[name] = (place.stat().st_mode & 0o7777, place.read_bytes())
        return found

    def packages(self) -> dict[str, str]:
        """Installed packages with their versions."""
        lines = self.output("dpkg-query -W -f='${Package} ${db:Status-Status} ${Version}\\n'").splitlines()
        return {name: version for name, state, version in (line.split(" ") for line in lines) if state == "installed"}


def wanted_of(machine: Machine, settings: dict[str, Any]) -> tuple[Request, Answer]:
    """A stack, and what its packages' step is to have answered."""
    machine.want(**settings)
    request = Request.of(machine.target, machine.settings, "vms.gaming", machine.read())
    capabilities = machine.settings.capabilities or ("compute", "video")
    return request, machine.installed(request.system.host_driver or VERSION, capabilities)


def used(machine: Machine, request: Request, installed: Answer) -> Any:
    """What the verification of a stack puts out, and what it says."""
    return judge(machine.verify(tried(request, installed)), request, installed)


def verified(machine: Machine, settings: dict[str, Any]) -> Any:
    """The same of the stack that is wanted and there now."""
    return used(machine, *wanted_of(machine, settings))


_KEYRING = (
    "curl -fsSLo $HOMELAB_ROOT/root/k.deb https://developer.download.nvidia.com/compute/cuda/repos/{}/x86_64/cuda-keyring_1.1-1_all.deb"
    " && dpkg -i $HOMELAB_ROOT/root/k.deb && apt-get -qq update"
)


def with_repository(machine: Machine, distribution: str) -> Machine:
    """NVIDIA's repository, as an owner adds it by hand."""
    machine.output(_KEYRING.format(distribution.replace("-", "").replace(".", "")))
    return machine


class VirtualMachine(Machine):
    """VM 103 with a card: the RTX 5090, or another by its device id, or none."""

    target = "vm"

    def __init__(
        self,
        state: Path,
        distribution: str = "ubuntu-24.04",
        *,
        card: str | None = "2b85",
        system: dict[str, Any] | None = None,
    ) -> None:
        wanted = scenario(vm={"distribution": distribution, **(system or {})}, pci=other_card(card or "2b85"))
        self.vm = Vm(state, wanted, card=card is not None)
        super().__init__(self.vm.host, self.vm.root, self.vm.run)

    def environment(self) -> dict[str, str]:
        return environment_of(self.vm.system, "root")

    def reboot(self) -> None:
        """Down and up again."""
        self.vm.reboot()

    def enrolled(self, value: bool) -> None:
        """Whether DKMS's key is among those that Secure Boot takes."""
        with self.vm.system.changing() as machine:
            machine["mok_enrolled"] = value


class ProxmoxHost(Machine):
    """A host that runs, and keeps its cards."""

    target = "host"

    def __init__(self, host: Host) -> None:
        super().__init__(host, host.root, host.run)


class Container(Machine):
    """A container in which nothing is installed; on phoenix, whose host has a driver, with a card's nodes."""

    target = "lxc"

    def __init__(self, state: Path, name: str = "phoenix", ctid: int = 901) -> None:
        self.ctid = ctid
        host = emptied(Host(state, name, running=True), ctid, *(NODES if name == "phoenix" else ()))
        super().__init__(host, host.root.parent / f"guests/{ctid}/root", self.execute)

    def execute(self, text: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment() | {"PATH": f"{self.host.machine.state}/bin:{os.environ['PATH']}"}
        return ran(["pct", "exec", str(self.ctid), "--", "bash", "-c", text], environment)
