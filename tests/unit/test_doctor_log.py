"""homelab/cli/log.py: where `homelab doctor log` reaches a guest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.cli import log
from homelab.errors import HomelabError
from homelab.settings import Host, Settings, Vm, parse
from tests.unit.hosts import KEY


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
