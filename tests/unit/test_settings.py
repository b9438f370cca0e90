"""homelab/settings/__init__.py: every mistake in the configuration is named, all at once, before anything runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pulumi
import pytest

from homelab.errors import HomelabError
from homelab.remote import logins, loop
from homelab.resources.command import connection
from homelab.settings import Settings, load_host, parse, stack_file
from remote_scripts.both.terms import Terms
from tests.rows import rows
from tests.unit.hosts import KEY, values


def hosts(**changes: Any) -> dict[str, Any]:
    return {"pve": values(**{"ssh": {"hostKey": KEY, "privateKeyFile": "~/.ssh/id_ed25519"}, **changes})}


def loaded(configuration: dict[str, Any], **others: str) -> Settings:
    return parse({"hosts": json.dumps(configuration), **others})


def refused_of(texts: dict[str, str]) -> str:
    with pytest.raises(HomelabError) as error:
        parse(texts)
    return str(error.value)


def refused(configuration: dict[str, Any], **others: str) -> str:
    return refused_of({"hosts": json.dumps(configuration), **others})


def card(**changes: Any) -> dict[str, Any]:
    return {"gpus": {"big": {"match": "10de:2b85", **changes}}}


def test_a_minimal_configuration_has_safe_defaults() -> None:
    settings = loaded(hosts())
    host = settings.hosts["pve"]
    assert (host.ssh.user, host.ssh.port, host.reboot, host.take_over, settings.plan) == (
        "root",
        22,
        "auto",
        False,
        "auto",
    )
    assert (host.wants_iommu, host.bypasses_iommu, host.gpus["rtx5090"].use) == (True, True, "vm")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0000:01:00.0", "0000:01:00"),
        ("01:00", "0000:01:00"),
        ("0001:C1:00.1", "0001:c1:00.1"),
        ("10000:e1:00.0", "10000:e1:00"),
    ],
)
def test_a_pci_address_is_a_slot_or_a_function_in_any_notation(written: str, meant: str) -> None:
    assert loaded(hosts(gpus={"big": {"address": written}})).hosts["pve"].gpus["big"].address == meant


@rows(
    ("changes", "said"),
    [
        ({"gpu": {}}, "homelab:hosts.pve.gpu: unknown key, did you mean `gpus`?"),
        (card(macth="10de:2b85"), "homelab:hosts.pve.gpus.big.macth: unknown key, did you mean `match`?"),
        ({"gpus": {"big": {}}}, "expected `match` (vendor:device"),
        (card(match="RTX 5090"), "expected vendor:device in hexadecimal, such as 10de:2b85"),
        ({"gpus": {"big": {"address": "1:0"}}}, "expected a PCI address such as 0000:01:00"),
        ({"gpus": {"a b": {"match": "10de:2b85"}}}, "expected a name of letters, digits and hyphens"),
        (card(allowGroupMembers=["02:00"]), "expected a PCI function's address"),
        (card(functions=["02:00"]), "expected a PCI function's address"),
        (card(use="lxc", reset="flr"), "expected no reset"),
        (card(use="host", keepAwake=True), "expected no keepAwake"),
        (card(reset="hot"), "found 'hot'"),
        (
            card(use="lxc", functions=["0000:02:00.0"]),
            "expected no functions: it is for a card that is bound to vfio-pci",
        ),
        (
            {"address": "192.168.0.2002"},
            "expected an IP address or a host name, such as 192.168.0.202 or pve.lan; found",
        ),
        ({"address": "pve lan; reboot"}, "expected an IP address or a host name"),
        ({"reboot": "never"}, "should be 'auto' or 'manual'; found 'never'"),
        ({"timeouts": {"api": "x"}}, "hosts.pve.timeouts.api: 'x' isn't a whole number"),
        ({"gpus": []}, "hosts.pve.gpus: what stands there isn't a group of keys"),
        ({"ssh": {"agent": True, "hostKey": KEY[:-1]}}, "80 characters: this text has 79"),
        ({"timeouts": {"reboot": 0}}, "homelab:hosts.pve.timeouts.reboot"),
        ({"ssh": {"hostKey": KEY}}, "expected exactly one of privateKeyFile, privateKey, password, agent"),
        ({"ssh": {"hostKey": KEY, "agent": True, "password": "x"}}, "expected exactly one of"),
        ({"ssh": {"agent": True}}, "expected hostKey (the line that `ssh-keyscan -t ed25519 ADDRESS` prints"),
        ({"ssh": {"agent": True, "hostKey": "SHA256:abc"}}, "expected a public key such as `ssh-ed25519"),
        ({"ssh": {"agent": True, "hostKey": "ssh-ed25519 AAAA"}}, "expected a public key such as `ssh-ed25519"),
        ({"ssh": {"agent": True, "hostKey": KEY, "user": "root; id"}}, "expected a Unix user's name"),
    ],
)
def test_a_mistake_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    message = refused(hosts(**changes))
    assert said in message
    assert [line[:7] for line in message.splitlines() if not line.startswith(" ")] == [
        "wanted:", "found: ", "why:   ", "next:  ",
    ]  # fmt: skip


def test_a_mistake_is_named_with_the_line_that_has_it_or_what_it_would_be_in(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.mine.yaml"
    text = (
        "config:\n  vms:\n    sandbox:\n      host: pve\n      vmid: sandbox\n      gpus:\n        - a\n        - 1\n"
    )
    file.write_text(f"{text}  homelab:hosts:\n    pve:\n      address: 192.0.2.1\n")
    with pytest.raises(HomelabError) as raised:
        parse(stack_file.values_of(stack_file.parsed(file.read_text().replace("  vms", "  homelab:vms"))), file)
    said = str(raised.value)
    assert "Pulumi.mine.yaml:5: homelab:vms.sandbox.vmid: 'sandbox' isn't a whole number" in said
    assert "Pulumi.mine.yaml:8: homelab:vms.sandbox.gpus.1: what stands there isn't a group of keys" in said
    assert "Pulumi.mine.yaml:10: homelab:hosts.pve.ssh: missing" in said and f"next:   correct {file};" in said


def test_every_mistake_is_named_at_once() -> None:
    message = refused(hosts(address="1.2.3", adress="x", gpus={"big": {"match": "?"}}), plam="auto")
    for place in ("hosts.pve.address", "hosts.pve.adress", "hosts.pve.gpus.big.match", "homelab:plam"):
        assert place in message


def test_no_hosts_at_all_is_a_mistake() -> None:
    assert "homelab:hosts: Dictionary should have at least 1 item" in refused({})
    with pytest.raises(HomelabError, match="homelab:hosts: missing"):
        parse({})


def test_two_hosts_with_one_address_are_a_mistake() -> None:
    assert "two hosts with the address 192.168.0.202:22" in refused(hosts() | {"other": hosts()["pve"]})


@rows(
    "values",
    [
        hosts(ssh={"hostKey": KEY, "password": ["hunter2"], "privateKey": 3, "port": "hunter3"}),
        "{pve: {ssh: {password: hunter2}}",
        {"pve": "root:hunter2"},
        hosts(address="root:hunter2@pve.lan"),
        hosts(downloads={"a.qcow2": {"url": "https://me:hunter2@mirror.lan/a.qcow2"}}),
        hosts(gpus={"big": {"match": "10de:2b85", "functions": "hunter2"}}),
    ],
)
def test_secrets_never_show_in_a_message(values: Any) -> None:
    assert "hunter" not in refused(values)


@pytest.mark.parametrize(
    "text", ["", "ssh-ed25519", KEY[:16], f"192.168.0.202 {KEY}", "\x00\xff", "-----BEGIN OPENSSH PRIVATE KEY-----"]
)
def test_a_host_key_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.pub").write_bytes(text.encode("latin-1"))
    host = loaded(hosts(ssh={"hostKeyFile": str(tmp_path / "key.pub"), "agent": True})).hosts["pve"]
    with pytest.raises(HomelabError, match=r"key\.pub"):
        _ = host.ssh.pinned_host_key
    with pytest.raises(pulumi.RunError, match=r"key\.pub"):
        connection(host)


AS_RSA = KEY.replace("ssh-ed25519", "ssh-rsa")


@rows("key", [*(AS_RSA[:kept] for kept in range(17, len(AS_RSA), 7)), AS_RSA])
def test_a_host_key_that_is_not_whole_is_a_sentence_where_the_host_is_logged_into(key: str) -> None:
    host = loaded(hosts(ssh={"hostKey": key, "agent": True})).hosts["pve"]
    with pytest.raises(HomelabError, match="pinned in ssh.hostKey(.|\n)*one that is cut off(.|\n)*take the whole line"):
        loop.run(logins.reach(host))


def test_a_host_key_that_is_no_point_of_its_curve_is_refused() -> None:
    parts = [b"ecdsa-sha2-nistp256", b"nistp256", b"\x04" + b"\x01" * 64]
    blob = b"".join(len(part).to_bytes(4) + part for part in parts)
    key = f"ecdsa-sha2-nistp256 {base64.b64encode(blob).decode()}"
    host = loaded(hosts(ssh={"hostKey": key, "agent": True})).hosts["pve"]
    with pytest.raises(HomelabError, match="pinned in ssh.hostKey"):
        loop.run(logins.reach(host))


def test_a_host_that_left_the_configuration_is_named() -> None:
    with pytest.raises(HomelabError, match=r"homelab:hosts\.old"):
        load_host(json.dumps(hosts()), "old")


def test_a_host_is_given_up_whatever_is_mistaken_about_another_one() -> None:
    text = json.dumps(hosts() | {"far": {"address": "-x"}})
    assert load_host(text, "pve").address == "192.168.0.202"
    with pytest.raises(HomelabError, match=r"homelab:hosts\.far\.address"):
        load_host(text, "far")
    for mistaken in ("[]", "null", '"pve"', "{", None):
        with pytest.raises(HomelabError):
            load_host(mistaken, "pve")


VM = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}


def with_vms(vms: dict[str, Any], **gpus: Any) -> dict[str, str]:
    ssh = {"agent": True, "hostKeyFile": "key"}
    host = {"address": "192.168.0.202", "ssh": ssh, "gpus": gpus or {"rtx5090": {"match": "10de:2b85"}}}
    return {"hosts": json.dumps({"pve": host}), "vms": json.dumps(vms)}


@pytest.mark.parametrize(
    ("hosts", "what"),
    [
        ({"pve": "a-b", "pve-a": "b"}, "hosts.pve.gpus.a-b and hosts.pve-a.gpus.b: .* card of both as pve-a-b"),
        ({"a": "one", "ai": "two"}, "hosts.ai and containers.ai: .* stack of NVIDIA's of both as ai"),
        ({"a": "one", "b": "one"}, ""),
    ],
)
def test_two_resources_of_one_name_are_refused(hosts: dict[str, str], what: str) -> None:
    common = {"ssh": {"agent": True, "hostKeyFile": "key"}, "nvidia": {"driver": "580"}}
    described = {
        name: {**common, "address": f"192.0.2.{number}", "gpus": {card: {"match": "10de:2b85", "use": "lxc"}}}
        for number, (name, card) in enumerate(hosts.items(), 1)
    }
    first, card = next(iter(hosts.items()))
    containers = {"ai": {"host": first, "ctid": 201, "gpus": [card], "nvidia": {}}}
    texts = {"hosts": json.dumps(described), "containers": json.dumps(containers)}
    if not what:
        assert len(parse(texts).stacks) == 3
        return
    with pytest.raises(HomelabError, match=what):
        parse(texts)


@rows(
    ("case", "of_a", "said"),
    [
        ("no such host", {"host": "pv"}, "homelab:vms.a.host: no such host; there are pve"),
        ("no such card", {"gpus": ["rtx"]}, "hosts.pve has no card rtx; it has rtx5090"),
        ("one card twice", {"gpus": ["rtx5090", "rtx5090"]}, "rtx5090 is there twice"),
        ("an id that can't be", {"vmid": 99}, "greater than or equal to 100; found 99"),
        (
            "a new VM's line taken over",
            {"create": {}, "gpus": [{"gpu": "rtx5090", "takeOver": True}]},
            "takeOver is for a VM that was there before",
        ),
        ("a ROM file elsewhere", {"gpus": [{"gpu": "rtx5090", "romfile": "/x"}]}, "/usr/share/kvm"),
        ("a misspelt option", {"gpus": [{"gpu": "rtx5090", "xvga": True}]}, "did you mean `xVga`?"),
        ("a new VM's balloon", {"create": {"balloon": 1024}}, "a card pins all of a VM's memory"),
        ("a new VM's model", {"create": {}, "machine": "q35"}, "for a new one it is create.machine"),
        ("a new VM's screen", {"create": {}, "display": "none"}, "for a new one it is create.vga: none"),
        ("a new VM without PCI Express", {"create": {"machine": "pc"}}, "a card with pcie needs q35"),
    ],
)
def test_a_mistake_in_a_vm_is_named(case: str, of_a: dict[str, Any], said: str) -> None:
    message = refused_of(with_vms({"a": VM | of_a}))
    assert said in message, message


@rows(
    ("vms", "gpus", "said"),
    [
        (
            {"a": VM},
            {"rtx5090": {"match": "10de:2b85", "use": "lxc"}},
            "is for use: lxc; this guest needs vm, or shared",
        ),
        ({"a": VM, "b": VM | {"vmid": 104}}, {}, "given to vms.a and vms.b"),
        ({"a": VM, "b": VM | {"gpus": []}}, {}, "have the same id 103"),
        ({}, {"x": {"match": "10de:2b85"}}, "set `mapping`"),  # a name of one letter
        (
            {},
            {"aa": {"address": "01:00"}, "bb": {"address": "41:00", "mapping": "aa"}},
            "another card of this host has the mapping aa",
        ),
    ],
)
def test_what_vms_and_cards_cant_be_together_is_named(vms: dict[str, Any], gpus: dict[str, Any], said: str) -> None:
    message = refused_of(with_vms(vms, **gpus))
    assert said in message, message


def test_vms_are_read_with_their_defaults() -> None:
    settings = parse(with_vms({"a": VM, "b": {"host": "pve", "vmid": 104, "create": {}}}))
    assert settings.vms["a"].gpus[0].gpu == "rtx5090"
    assert (settings.vms["a"].wanted_power, settings.vms["b"].wanted_power) == ("keep", "running")
    assert settings.hosts["pve"].mapping_of("rtx5090") == "rtx5090"
    assert settings.vms["a"].shutdown.timeout == Terms().shutdown == 180  # on the host, where nobody says it


@rows(
    ("written", "meant"),
    [
        ("downstream", "downstream"),
        ("Downstream,MULTIFUNCTION", "downstream,multifunction"),
        ("id:8086:1901,id:10DE:2b85", "id:8086:1901,id:10de:2b85"),
        ("", None),
        ("downstream multifunction", None),
        ("downstream, multifunction", None),
        ("downstream,downstream", None),
        ("downstream,", None),
        ("true", None),
        ("id:8086", None),
        ("id:8086:19011", None),
        ("downstream\niommu=off", None),
    ],
)
def test_what_is_overridden_is_a_word_that_the_kernel_takes(written: str, meant: str | None) -> None:
    configuration = hosts(iommu={"acsOverride": written})
    if meant is None:
        assert "iommu.acsOverride" in refused(configuration)
    else:
        assert loaded(configuration).hosts["pve"].iommu.acs_override == meant


def test_rmrr_is_relaxed_by_the_word_that_switches_the_iommu_on() -> None:
    assert "relaxRmrr" in refused(hosts(iommu={"relaxRmrr": True, "enable": False}))
    assert loaded(hosts(iommu={"relaxRmrr": True})).hosts["pve"].iommu.relax_rmrr
