"""The lab's systems as the scripts of NVIDIA's stack meet them: a VM, a host, a container; without SSH and Pulumi."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab.nvidia import plan as planning
from homelab.nvidia.compatibility import Target
from homelab.nvidia.reading import SystemReading, parse
from homelab.nvidia.request import Request
from homelab.nvidia.settings import Nvidia
from homelab.remote import agent
from homelab.remote import nvidia_steps as steps
from homelab.remote.scripts import answer
from lab import processes
from lab.api.guest_system import environment_of
from lab.machine import Scenario
from lab.state import process_start_time
from lab.stock import without_subscription
from remote_scripts import put_agent
from remote_scripts.both import nvidia_verification, read_system
from remote_scripts.both.nvidia_packages import Answer, Said
from remote_scripts.tools import boot_service
from remote_scripts.tools.plain import of_plain
from tests import forked_agent
from tests.lab.guest_kit import Vm, scenario
from tests.lab.host_kit import Host
from tests.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Step:
    """What a layer of the agent is asked."""

    layer: str
    wanted: Any
    proxy: str = ""


@functools.cache
def agent_file() -> Path:
    """The agent, as a host keeps it."""
    path = Path(tempfile.mkdtemp(prefix="agent-")) / "agent.pyz"
    path.write_bytes(put_agent.compiled(agent.archive()))
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    return path


# Runs the agent, which stops itself before one of the calls that change something: `where`, of their number and of how far an update is.
_STOPPED = """
import json, os, signal, sys
from remote_scripts import agent
from remote_scripts.tools import disk
points, own = 0, os.getpid()
def look(*_):
    global points
    if os.getpid() != own:  # whoever keeps the lock for a program
        return
    points += 1
    try:
        phase = json.load(open(os.environ["ROOT"] + "/var/lib/homelab/update/kept"))["phase"]
    except OSError:
        phase = ""
    if WHERE(points, phase):
        os.kill(os.getpid(), signal.SIGSTOP)
disk.WATCH.append(look)
sys.addaudithook(lambda event, _: look() if event in ("subprocess.Popen", "os.fork") else None)
from remote_scripts.codes import OF_LAYERS
status = agent.main(sys.argv[1:], OF_LAYERS)
print("points", points, file=sys.stderr)
sys.exit(status)
"""


# What a VM can have installed.
GUESTS = ("ubuntu-24.04", "ubuntu-22.04", "ubuntu-26.04", "debian-12", "debian-13")


def _signal(name: str, session: str) -> None:
    """To every process of a session; there may be none any more."""
    done = subprocess.run(["pkill", f"-{name}", "-s", session], check=False)
    assert done.returncode in (0, 1)


class Machine:
    """One system of a lab. ``root``: its tree; ``host``: the lab's host."""

    target: Target
    #: Of a container.
    ctid = 0

    def __init__(self, host: Host, root: Path) -> None:
        self.host, self.root = host, root
        self.settings = Nvidia()
        #: A folder of programs that come before all others.
        self.environment_first: Path | None = None

    # -- running ----------------------------------------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        """Of the commands that run the scripts."""
        return self.host.machine.environment()

    def _environment(self) -> dict[str, str]:
        found = self.environment()
        return found | {"PATH": f"{self.environment_first}:{found['PATH']}"} if self.environment_first else found

    def start(self, verb: str, script: Step, where: str = "", **options: Any) -> subprocess.Popen[str]:
        """A layer, begun, in a process group of its own.

        :param where: of a layer: where it stops itself, a function of Python's of the number of a call that changes something and of an update's phase.
        """
        words = [*boot_service.PYTHON.split(), str(agent_file()), verb]
        if where:
            text = f"import sys\nsys.path.insert(0, {str(agent_file())!r})\nWHERE = {where}\n{_STOPPED}"
            words = [*boot_service.PYTHON.split(), "-c", text, verb]
        content = agent.request(script.layer, script.wanted, proxy=script.proxy, ctid=self.ctid)
        with tempfile.TemporaryFile("w+") as text_file:
            text_file.write(content)
            text_file.seek(0)
            return subprocess.Popen(
                words,
                stdin=text_file,
                text=True,
                env=self._environment(),
                cwd=self.host.root,
                start_new_session=True,
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            )

    def points(self, verb: str, step: Step) -> int:
        """How many calls a layer makes that change something."""
        process = self.start(verb, step, "lambda points, phase: False")
        out, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + log
        return int(log.rstrip().rpartition(" ")[2])

    def stopped(self, verb: str, step: Step, where: str) -> subprocess.Popen[str] | None:
        """A layer that has stopped itself before such a call, to be killed; None: it came to its end.

        :param where: as of `start`.
        """
        process = self.start(verb, step, where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return process
        process.returncode = os.waitstatus_to_exitcode(status)
        return None

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kill a layer that has stopped itself, with all that it has started, as when the machine loses its power: afterwards nothing of it runs.

        A simulated command is a child of the command server, which ends it once it has seen that who asked is gone: on a busy machine
        that is later than here, and the next run would find the command at work.
        """
        session = str(process.pid)
        _signal("STOP", session)  # so that none starts another meanwhile
        doomed = {*processes.descendants(process.pid)}
        _signal("KILL", session)
        process.wait()
        asked = {pid for pid, _ in doomed}

        def gone() -> bool:
            left = {one for one in doomed if process_start_time(one[0]) == one[1]}
            left |= {one for pid in asked for one in processes.descendants(pid)}
            processes.send_signal(left, signal.SIGKILL)
            return not left

        wait_until(gone)

    def run(self, verb: str, script: Step) -> subprocess.CompletedProcess[str]:
        """A script, run to its end."""
        return self.layer(verb, script.layer, script.wanted, proxy=script.proxy)

    def has_said(self, text: str) -> bool:
        """Whether a long command of a step has said that so far."""
        log = self.root / "run/homelab/steps"
        return log.exists() and text in log.read_text()

    def answer(self, verb: str, script: Step) -> dict[str, Any]:
        """What a script that must succeed answers."""
        done = self.run(verb, script)
        assert done.returncode == 0, done.stdout + done.stderr
        return answer(done.stdout)

    def refusal(self, script: Step, verb: str = "apply") -> str:
        """The message of a script that must fail, of the four lines that it has."""
        done = self.run(verb, script)
        assert done.returncode == 1, done.stdout + done.stderr
        lines = [line.partition(":")[0] for line in done.stdout.splitlines()]
        assert (lines[0], *lines[-2:]) == ("wanted", "why", "next"), done.stdout
        return done.stdout

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        """A person's commands on it."""
        raise NotImplementedError

    def output(self, text: str) -> str:
        """What a person's commands print, which must succeed."""
        done = self.bash(text)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fault(self, name: str, value: Any = True) -> None:
        """Set a fault of the lab; None takes it back."""
        self.host.machine.set_fault(name, value)

    # -- the steps --------------------------------------------------------------------------------------------
    def want(self, **settings: Any) -> None:
        """The settings from now on."""
        self.settings = Nvidia.model_validate(settings)

    def layer(self, verb: str, layer: str, wanted: Any, *, proxy: str = "") -> subprocess.CompletedProcess[str]:
        """A layer of the agent."""
        return forked_agent.asked(self._environment(), verb, layer, wanted, ctid=self.ctid, proxy=proxy)

    def asked_of(self, verb: str, layer: str, wanted: Any) -> dict[str, Any]:
        """What a layer that must succeed answers."""
        done = self.layer(verb, layer, wanted)
        assert done.returncode == 0, done.stdout + done.stderr
        return answer(done.stdout)

    def verify(self, wanted: nvidia_verification.Wanted) -> dict[str, Any]:
        """What the stack is seen to do."""
        return self.asked_of("apply", "nvidia_verification", wanted)

    def read(self, **wanted: Any) -> SystemReading:
        """A reading."""
        return parse(self.asked_of("read", "read_system", read_system.Wanted(**wanted)))

    def request(self) -> Request:
        """What follows from settings and a reading."""
        return Request(self.target, self.settings, self.read().system, "it")

    def step(self, layer: str, wanted: Any) -> Step:
        """A layer with the settings' proxy."""
        return Step(layer, wanted, self.settings.proxy.get_secret_value() if self.settings.proxy else "")

    def packages_step(self, **settings: Any) -> Step:
        """Driver, CUDA, toolkit: the first step."""
        if settings:
            self.want(**settings)
        return self.step("nvidia_packages", planning.wanted(self.request()))

    def says(self, **settings: Any) -> Said:
        """What apt says of it."""
        return of_plain(Said, self.answer("read", self.packages_step(**settings)), "answer")

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

    def toolkit_step(self, version: str, capabilities: Sequence[str] = ()) -> Step:
        """The container toolkit's, after the first one, which has left this driver."""
        return self.step("container_toolkit", steps.toolkit(self.request(), self.installed(version, capabilities)))

    # -- what is there ----------------------------------------------------------------------------------------
    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of every file that stays over a reboot, but for logs and lists of packages."""
        found = {}
        passing = (
            "run",
            "proc",
            "sys",
            "dev",
            "tmp",
            "var/log",
            "var/lib/apt/lists",
            "var/cache",
            "var/lib/dpkg/info",
            "var/lib/dpkg/status-old",
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


_KEYRING = (
    "curl -fsSLo $ROOT/root/k.deb https://developer.download.nvidia.com/compute/cuda/repos/{}/x86_64/cuda-keyring_1.1-1_all.deb"
    " && dpkg -i $ROOT/root/k.deb && apt-get -qq update"
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
        super().__init__(self.vm.host, self.vm.root)

    def environment(self) -> dict[str, str]:
        return environment_of(self.vm.system, "root")

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        return self.vm.run(text)

    def reboot(self) -> None:
        """Down and up again."""
        self.vm.reboot()

    def enrolled(self, value: bool) -> None:
        """Whether DKMS's key is among those that Secure Boot takes."""
        with self.vm.system.changing() as machine:
            machine["mok_enrolled"] = value


def other_card(device: str) -> list[Any]:
    """The rtx5090 scenario's devices with another card in its place."""
    pci: list[Any] = scenario().model_dump(mode="json", by_alias=True, exclude_defaults=True)["pci"]
    for bridge in pci:
        for child in bridge.get("children", []):
            if child["address"].endswith("01:00.0") and device != "2b85":
                child |= {"device": device, "name": f"another card ({device})"}
    return pci


class ProxmoxHost(Machine):
    """A host that keeps its cards."""

    target = "host"

    def __init__(self, state: Path, name: str = "rtx5090") -> None:
        host = Host(state, name, running=True)
        without_subscription(host.root)
        host.output("apt-get -qq update")
        super().__init__(host, host.root)

    @classmethod
    def of(cls, host: Host) -> ProxmoxHost:
        """One that runs already."""
        found = cls.__new__(cls)
        Machine.__init__(found, host, host.root)
        return found

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        return self.host.run(text)


class Container(Machine):
    """A container that has a card's nodes, on a host with a driver; nothing is installed in it."""

    target = "lxc"

    def __init__(self, state: Path, name: str | Scenario = "phoenix", ctid: int = 901) -> None:
        host = Host(state, name, running=True)
        self.ctid = ctid
        host.output(f"pct stop {ctid}; rm -rf $LAB_STATE/guests/{ctid}")
        conf = host.root / f"etc/pve/lxc/{ctid}.conf"
        head = conf.read_text().partition("\n[")[0]
        kept = [line for line in head.splitlines() if not line.startswith(("dev", "lxc."))]
        if name != "containers-pve8":
            nodes = ("nvidia0", "nvidiactl", "nvidia-uvm")
            kept += [f"dev{n}: /dev/{node},mode=0666" for n, node in enumerate(nodes)]
        else:
            binds = ("nvidia0", "nvidiactl", "nvidia-uvm")
            kept += ["lxc.cgroup2.devices.allow: a"]
            kept += [f"lxc.mount.entry: /dev/{node} dev/{node} none bind,optional,create=file" for node in binds]
        conf.write_text("\n".join(kept) + "\n")
        host.output(f"pct start {ctid}")
        super().__init__(host, host.root.parent / f"guests/{ctid}/root")

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pct", "exec", str(self.ctid), "--", "bash", "-c", text],
            env=self.environment() | {"PATH": f"{self.host.machine.state}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )


def without_dpkg(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """What the way back must give back, but for what dpkg notes, and the key that DKMS makes once."""
    own = ("var/lib/dpkg/", "var/lib/dkms/mok.pub")
    return {name: value for name, value in machine.tree().items() if not name.startswith(own)}
