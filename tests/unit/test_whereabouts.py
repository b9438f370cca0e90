"""homelab/cli/whereabouts.py: where `log` and `lock` reach a guest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab.cli import whereabouts
from homelab.errors import HomelabError
from homelab.settings import Host, Vm, parse
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

        def host(self, name: str, _identity: str | None) -> tuple[str, Host]:
            return name, self.settings.hosts[name]

    file: Any = File()
    vm = Vm.model_validate({"host": "pve1", "vmid": 103, "gpus": ["gpu"], "address": "192.0.2.9", "ssh": {"hostKey": KEY, "agent": True}})  # fmt: skip
    file.settings.vms["games"] = vm
    host, ctid = whereabouts.of_guest(file, file.settings, "vms.games", None)
    assert (host.address, host.ssh, ctid) == ("192.0.2.9", vm.ssh, 0)
    for more, reason in (({"address": "agent"}, "its address is agent"), ({"ssh": None}, "its ssh is not")):
        file.settings.vms["games"] = vm.model_copy(update=more)
        with pytest.raises(HomelabError, match=reason):
            whereabouts.of_guest(file, file.settings, "vms.games", None)
    assert whereabouts.of_guest(file, file.settings, "containers.ai", None) == (file.settings.hosts["pve1"], 901)
