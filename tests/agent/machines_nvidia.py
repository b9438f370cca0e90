"""The hosts on which the layers of NVIDIA's software are stopped (test_stops.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from remote_scripts.nvidia import driver
from remote_scripts.tools.run import Stand
from tests.agent import driver_kit, passthrough_kit
from tests.agent.disk_kit import Tree
from tests.agent.kit import Host
from tests.agent.machines import Machine, first_lines


class Nvidia(Machine):
    """A host with apt, dpkg, DKMS and NVIDIA's installer (driver_kit.py). The example's `offers`: further packages, each with its files; a program that is
    named by its path says its word as long as its file is there.
    """

    def begin(self) -> None:
        self.box = driver_kit.Machine(self.host, self.example.get("no_build", ()), self.example.get("offers"))
        self.box.stock()

    def add(self) -> None:
        super().add()
        self.add_programs()

    def go_on(self, before: Any, is_booted: bool) -> None:
        self.box = driver_kit.after(self.host, before.box, booted=is_booted)
        self.add_programs()

    def add_programs(self) -> None:
        """Those of this folder, beside apt's and the driver's."""
        host = self.host
        for path, answer in self.example.get("installed_programs", {}).items():
            host.programs[f"{host.root}{path}"] = _installed(host, path, answer)

    def lasting(self) -> Tree:
        """Without folders, which go as dpkg likes, and what it leaves when it is killed."""
        tree = first_lines(driver_kit.lasting(self.host))
        # An installer that was fetched again by a run that was cut short goes with the driver.
        left_out = "var/lib/homelab/downloads/" if self.host.exists(driver.NOTE.path) else "/"
        return {path: about for path, about in tree.items() if not path.startswith(left_out)}


def _installed(host: Host, path: str, answer: str) -> Stand:
    return lambda _arguments, _stdin: answer if host.exists(path) else 127


class Docker(Nvidia):
    """The same with docker, which reads its configuration when it is told to, and a toolkit without a service of its own."""

    _CONF, _READ = "/etc/docker/daemon.json", "/sys/docker"

    def begin(self) -> None:
        super().begin()
        self.host.write("/usr/bin/dockerd", "")

    def add(self) -> None:
        super().add()
        self._start()

    def go_on(self, before: Any, is_booted: bool) -> None:
        super().go_on(before, is_booted)
        if is_booted:
            self._start()

    def add_programs(self) -> None:
        super().add_programs()
        self.host.programs |= {
            "systemctl": self._systemctl,
            "journalctl": lambda _arguments, _stdin: "",
            "nvidia-ctk": self._nvidia_ctk,
        }

    def lasting(self) -> Tree:
        """And with what it runs."""
        return {**super().lasting(), **self.host.tree(self._READ.lstrip("/"))}

    def _start(self) -> int:
        text = self.host.read(self._CONF) if self.host.exists(self._CONF) else "{}"
        try:
            self.host.write(self._READ, json.dumps(json.loads(text)))
        except ValueError:
            return 1
        return 0

    def _systemctl(self, arguments: Sequence[str], _stdin: bytes) -> int:
        if arguments[0] in ("restart", "reload-or-restart"):
            return self._start()
        return int(arguments[0] == "cat")

    def _nvidia_ctk(self, arguments: Sequence[str], _stdin: bytes) -> int:
        """It writes a specification, and flushes nothing."""
        if not self.host.exists("/usr/bin/nvidia-ctk"):
            return 127
        (output,) = (word.partition("=")[2] for word in arguments if word.startswith("--output="))
        Path(output).write_text('hostPath: /usr/lib/libcuda.so.580.159.03\n- name: "all"\n')
        return 0


class Passthrough(Machine):
    """A host with a card on vfio-pci, and a VM that sees all of it (passthrough_kit.py)."""

    def begin(self) -> None:
        self.qm = passthrough_kit.Qm(self.host)
        passthrough_kit.stock(self.host)
        self.host.programs |= {"qm": self.qm, "ldd": lambda _arguments, _stdin: 1}

    def go_on(self, before: Any, is_booted: bool) -> None:
        self.qm = passthrough_kit.Qm(self.host)
        self.qm.runs = set() if is_booted else {*before.qm.runs}
        self.host.programs["qm"] = self.qm

    def lasting(self) -> Tree:
        """Without what a killed qm leaves of its own."""
        return {path: about for path, about in self.host.lasting().items() if not path.endswith(".conf.tmp.1")}


MACHINES: dict[str, Callable[[Path, Mapping[str, Any]], Machine]] = {
    "with apt": Nvidia,
    "with docker": Docker,
    "passthrough": Passthrough,
}
