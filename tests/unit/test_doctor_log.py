"""homelab/cli/log.py: where `homelab doctor log` reaches a guest, and what it says of a log."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from homelab.cli import log
from homelab.errors import HomelabError
from homelab.settings import Host, Settings, Vm, parse
from tests.unit.hosts import KEY


def test_what_the_last_command_said_is_explained_below_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        """The settings file, as far as its only host goes."""

        def host(self, name: str | None, _identity: str | None) -> tuple[str, Host]:
            assert name is None
            return "pve1", Host.model_validate({"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}})

    class Session:
        """The host."""

        said = ""

        def __init__(self, _host: Host) -> None: ...

        def ask(self, *_: object) -> dict[str, str]:
            return {"log": self.said}

    monkeypatch.setattr("homelab.cli.stack_options.read", lambda _: File())
    monkeypatch.setattr("homelab.remote.ssh.Session", Session)
    arguments: Any = argparse.Namespace(system=None, identity=None, lines=200)
    failed = "2026-11-30 10:00:00 apt-get install x\n  E: You have held broken packages."
    well = "2026-11-30 10:01:00 apt-get install y\n  Setting up y"
    for said, told in (("", False), (failed, True), (f"{failed}\n{well}", False), (f"{well}\n{failed}", True)):
        Session.said = said
        shown = log.read(arguments)
        assert said in shown and ("hosts.pve1: packages of one repository" in shown) is told


def test_a_vm_is_reached_by_its_own_address() -> None:
    class File:
        """The settings file, as far as hosts go."""

        def __init__(self) -> None:
            host = {"address": "192.0.2.1", "ssh": {"hostKey": KEY, "agent": True}}
            card = {"gpus": {"gpu": {"match": "10de:2b85"}}}
            container = {"host": "pve1", "ctid": 901, "gpuAssignment": "all"}
            texts = {"hosts": {"pve1": {**host, **card}}, "containers": {"ai": container}}
            self.settings = parse({key: json.dumps(value) for key, value in texts.items()})
            self.path = "Pulumi.lab.yaml"

        def guests(self) -> Settings:
            return self.settings

        def host_names(self) -> list[str]:
            return [*self.settings.hosts]

        def host(self, name: str, _identity: str | None) -> tuple[str, Host]:
            return name, self.settings.hosts[name]

    file: Any = File()
    vm = Vm.model_validate({"host": "pve1", "vmid": 103, "gpus": ["gpu"], "address": "192.0.2.9", "ssh": {"hostKey": KEY, "agent": True}})  # fmt: skip
    file.settings.vms["games"] = vm
    host, of = log.of_guest(file, "games", None)
    assert (host.address, host.ssh, of) == ("192.0.2.9", vm.ssh, "")
    login = log.of_guest(file, "games", "/my/key")[0].ssh  # --identity
    assert (login.agent, login.private_key_file) == (False, "/my/key")
    for more in ({"address": "agent"}, {"ssh": None}):
        file.settings.vms["games"] = vm.model_copy(update=more)
        with pytest.raises(HomelabError, match="with a login: hosts.pve1, containers.ai"):
            log.of_guest(file, "vms.games", None)
    assert log.of_guest(file, "containers.ai", None) == (file.settings.hosts["pve1"], "container 901")
