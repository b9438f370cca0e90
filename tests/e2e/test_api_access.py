"""Who we are to Proxmox VE, and whom we believe to be it: tokens, tickets, rights, certificates; several hosts."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab import settings
from homelab.remote.proxmox import probe
from lab import Lab
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, api_token, host_settings, planned
from tests.e2e.test_gpu_vm import MAPPING, conf, given_back, vms, with_card
from tests.engine_stack import name_of
from tests.rows import check_rows

SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}
# The guide's commands for a user of one's own, as a person copies them.
COMMANDS = [
    line.strip() for line in re.findall(r"^ *pveum .*", (PROJECT / "docs/by-hand.md").read_text(), re.MULTILINE)
]


def guides_role(name: str) -> list[str]:
    """The privileges of a role that the guide makes."""
    line = next(line for line in COMMANDS if line.startswith(f"pveum role add {name} "))
    return re.search(r'--privs "(.*)"', line)[1].split()  # type: ignore[index]


def use_guides_token(stack: Stack) -> None:
    """The guide's commands carried out, and their token used."""
    for command in COMMANDS:
        stack.lab.run(command)
    made = stack.lab.run("pvesh create /access/users/homelab@pve/token/tests --privsep 0 --output-format json").stdout
    secret = re.search(r'"value": *"([0-9a-f-]+)"', made)[1]  # type: ignore[index]
    stack.host["api"] |= {"token": "homelab@pve!tests", "tokenSecret": secret}


def test_the_guides_role_is_enough_and_each_privilege_is_needed(stack_on: Callable[..., Stack]) -> None:
    stack = stack_on("bound-by-hand", vms={})
    stack.lab.run("qm set 103 --balloon 4096; qm stop 103; qm start 103")
    use_guides_token(stack)
    stock = stack.lab.snapshot()
    privileges = guides_role("Homelab")

    def allow(granted: list[str]) -> None:
        stack.lab.run(f"pvesh set /access/roles/Homelab --privs {','.join(granted)}")

    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    host, sandbox = settings.Host.model_validate(stack.host), settings.Vm.model_validate(vms(stack)["sandbox"])
    read = planned(stack)
    # What an `up` asks before it changes anything; the engine shows it of the last one.
    for missing in privileges:
        allow([one for one in privileges if one != missing])
        (refusal,) = probe.check("pve", host, read.facts, read.want, {"sandbox": sandbox}, {})
        assert missing in refusal.found and "homelab@pve!tests lacks the right" in refusal.why
    refused = stack.up(ok=False)
    assert privileges[-1] in refused.message and "homelab@pve!tests lacks the right" in refused.message
    assert "hostpci" not in conf(stack, 103)
    allow(privileges)
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    stack.destroy_as_left()
    given_back(stack, stock)


def test_root_with_a_password_works_logs_in_once_and_may_use_the_address(converged: Callable[..., Stack]) -> None:
    by_address = {"gpu": "rtx5090", "byAddress": True, "romfile": "card.rom", "rombar": False}
    stack = converged("bound-by-hand", vms={})
    stack.config["homelab:vms"] = {"sandbox": {"host": "pve", "vmid": 103, "gpus": [by_address]}}
    api = stack.lab.api
    secure = {"port": api["port"], "fingerprint": api["fingerprint"]}
    stack.host["api"] = {**secure, "user": api["user"], "password": api["password"]}
    mark = stack.lab.mark()
    assert api["password"] not in stack.up().output
    assert "hostpci0: host=0000:01:00,pcie=1,rombar=0,romfile=card.rom" in conf(stack, 103)
    assert with_card(stack)["0000:01:00.0"] == 103
    assert [call["path"] for call in stack.lab.api_calls(mark)].count("/access/ticket") == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a token that isn't": ({"token": "root@pam!nobody"}, "the node doesn't know root@pam!nobody by these credentials"),
    "a wrong secret": ({"tokenSecret": "00000000-0000-0000-0000-000000000000"}, "401"),
    "another certificate authority": ({"caFile": "OTHER"}, "whose certificate is the one in api.caFile"),
    "the authority's fingerprint": (
        {"caFile": None, "fingerprint": "AUTHORITY"},
        "that of the cluster's own authority",
    ),
    "another fingerprint": ({"caFile": None, "fingerprint": "ab" * 32}, "the certificate's fingerprint is"),
    "a port where nobody is": ({"port": 1}, "no answer from https://127.0.0.1:1"),
    "another node's name": ({"node": "pvee"}, "correct hosts.pve.node"),
}


# Without the engine; how an `up` shows a refusal: above, and tests/e2e/test_failures.py.
def test_wrong_credentials_and_strangers_are_refused_before_anything_changes(
    untouched: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = untouched("bound-by-hand", vms=SANDBOX)
    stock, read = stack.lab.snapshot(), planned(stack)
    sandbox = settings.Vm.model_validate(vms(stack)["sandbox"])
    pem = (stack.lab.root / "etc/pve/pve-root-ca.pem").read_text()

    def is_refused(name: str) -> None:
        change, said = WRONG[name]
        if change.get("caFile") == "OTHER":
            with Lab.start("rtx5090", state=tmp_path) as stranger:
                change = {"caFile": str(stranger.api["caFile"])}
        if change.get("fingerprint") == "AUTHORITY":
            change = {"caFile": None, "fingerprint": hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()}
        api = {key: value for key, value in (stack.host["api"] | change).items() if value is not None}
        other = {**stack.host, **change} if "node" in change else {**stack.host, "api": api}
        host = settings.Host.model_validate(other)
        found = probe.check("pve", host, read.facts, read.want, {"sandbox": sandbox}, {}, patience=1)
        message = "\n".join(map(str, found))
        assert len(found) == 1 and said in message, message
        assert stack.lab.api["tokenSecret"] not in message

    check_rows(is_refused, [(name,) for name in WRONG])
    assert stack.lab.snapshot() == stock


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Lab]:
    """Another host."""
    lab = Lab.start("bound-by-hand", state=tmp_path / "second")
    yield lab
    lab.stop()


def test_two_hosts_in_one_stack(stack_on: Callable[..., Stack], second: Lab) -> None:
    stack = stack_on("bound-by-hand", vms=SANDBOX)
    second_stock = second.snapshot()
    gpus = {"rtx5090": {"match": "10de:2b85"}}
    hosts = stack.config["homelab:hosts"]
    hosts["second"] = {**host_settings(second), "api": api_token(second), "node": second.api["node"], "gpus": gpus}
    vms(stack)["other"] = {"host": "second", "vmid": 999, "gpus": ["rtx5090"]}
    # What one of them refuses keeps an `up`, which no preview came before, from changing the other.
    stock = stack.lab.snapshot()
    second.fault("api-seconds", 2)  # the other is known to be fit long before
    refused = stack.up(ok=False)
    second.fault("api-seconds", 0)
    assert "no such VM on the host" in refused.message and stack.lab.snapshot() == stock
    vms(stack)["other"]["vmid"] = 103
    stack.up()
    assert with_card(stack)["0000:01:00.0"] == 103
    assert "0000:01:00.0 103" in (second.root / "run/qemu-server/pci-id-reservations").read_text()
    outputs = stack.output()
    assert outputs["hosts"]["second"]["gpus"]["rtx5090"]["holder"] == "other"
    assert outputs["vms"]["other"]["host"] == "second"
    assert outputs["vms"]["other"]["state"] == "running"
    # Whoever forgets one that is gone (`pulumi state delete --target-dependents`) keeps the other.
    needing = {
        name_of(resource["urn"])
        for resource in stack.resources()
        if "second-probe" in map(name_of, resource.get("dependencies", []))
    }
    assert needing and not [name for name in needing if not name.startswith(("second", "other"))]

    # One host out of reach doesn't keep the other from being changed.
    vms(stack)["sandbox"]["gpus"] = []
    second.stop()
    stack.up()
    assert with_card(stack) == {}
    Lab.start("bound-by-hand", state=second.state, outlives_caller=True)
    # That host given up, as is said to whoever takes it out at once: the other is left in peace.
    mark = stack.lab.mark()
    kept = hosts.pop("second"), vms(stack).pop("other")
    said = stack.up(ok=False).message
    assert "first take its cards, VMs and containers out, and run `pulumi up`" in said, said
    hosts["second"] = {**kept[0], "gpus": {}}
    stack.up()
    del hosts["second"]
    stack.up()
    assert stack.lab.connections(since=mark) == []
    now = second.snapshot()
    assert (second.root / MAPPING).read_text() == ""
    del now[MAPPING]
    assert now == second_stock
