"""homelab/rights.py: what the settings need, as docs/by-hand.md and docs/settings.md list it; whose entries count; which command adds a right."""

from __future__ import annotations

import re
from typing import Any

import pytest

from homelab import rights
from homelab.remote.proxmox import probe
from homelab.rights import Permissions, advice, commands
from homelab.settings import Container, Vm
from tests.conftest import PROJECT
from tests.unit import hosts

API = {"token": "homelab@pve!pulumi", "tokenSecret": "x" * 36, "fingerprint": "ab" * 32}
NEW = {"disk": {"storage": "fast", "size": 32}}


def needed(
    vm: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    config: str = "",
    pve: str = "9.1.1",
    **facts_changes: Any,
) -> rights.Needs:
    host = hosts.settings(api=API, node="pve")
    vms = {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, **vm})} if vm is not None else {}
    boxes = {"box": Container.model_validate({"host": "pve", "ctid": 901, **container})} if container else {}
    configs = [{"kind": "vm", "id": 103, "lines": config}] if config else []
    guests = {"running": [], "configs": configs, "mappings": "", "reservations": ""}
    facts = hosts.desktop(guests=guests, pve=pve, **facts_changes)
    from homelab.host import plan

    return probe.needed("pve", host, facts, plan.wanted(facts, host), vms, boxes)


def on_vms(needs: rights.Needs) -> set[str]:
    return {name for path, names in needs.items() if path.startswith("/vms/") for name in names}


def readme_role() -> set[str]:
    match = re.search(
        r'pveum role add Homelab --privs "([^"]+)"', (PROJECT / "docs/by-hand.md").read_text(encoding="utf-8")
    )
    assert match is not None
    return set(match[1].split())


def listed_row(reason: str) -> set[str]:
    """The privileges of a row of the page's table."""
    lines = (PROJECT / "docs/settings.md").read_text(encoding="utf-8").splitlines()
    cells = next(line.split("|") for line in lines if line.startswith("| /") and line.split("|")[3].strip() == reason)
    return set(cells[2].split())


def test_the_readmes_role_is_what_a_vm_whose_memory_balloons_takes() -> None:
    needs = needed({"gpus": ["rtx5090"]}, config="name: Sandbox\nmachine: q35\nmemory: 8192\nballoon: 4096\n")
    assert {name for names in needs.values() for name in names} == readme_role()
    assert needs["/mapping/pci"] == {"Mapping.Modify"}
    assert needs["/mapping/pci/rtx5090"] == {"Mapping.Use"}


def test_a_vm_without_a_balloon_takes_no_right_to_its_memory() -> None:
    needs = needed({"gpus": ["rtx5090"]}, config="name: Sandbox\nmachine: q35\nmemory: 8192\n")
    assert on_vms(needs) == readme_role() - {"Mapping.Modify", "Mapping.Use", "VM.Config.Memory"}


@pytest.mark.parametrize(
    ("create", "more"),
    [
        ({}, []),
        ({"image": "local:import/noble.qcow2", "cloudInit": {"user": "me"}}, []),
        ({"isos": ["local:iso/win.iso"]}, ["`isos`"]),
        ({"template": 900}, ["`template`"]),
        ({"template": 900, "cloudInit": {"user": "me"}}, ["`template`", "`template` with `cloudInit`"]),
    ],
)
def test_the_pages_rows_are_what_a_new_vm_takes(create: dict[str, Any], more: list[str]) -> None:
    needs = needed({"gpus": ["rtx5090"], "create": {**NEW, **create}})
    listed = listed_row("every new VM").union(*(listed_row(reason) for reason in more))
    # Where one of two would do, the other is listed for another reason.
    assert {name for name in on_vms(needs) if "|" not in name} == listed
    assert all(set(name.split("|")) & listed for name in on_vms(needs))
    assert needs["/storage/fast"] == listed_row("its disks")
    assert needs["/sdn/zones/localnetwork/vmbr0"] == listed_row("its bridge")


def test_the_pages_rows_are_what_a_new_container_takes() -> None:
    template = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
    needs = needed(container={"gpus": [], "create": {**NEW, "template": template}})
    assert on_vms(needs) == listed_row("every new container")
    assert needs["/storage/local"] == {"Datastore.Audit|Datastore.AllocateSpace"}


@pytest.mark.parametrize(("pve", "takes"), [("8.4.14", False), ("9.1.1", True)])
def test_a_privileged_container_takes_a_right_to_the_node_since_proxmox_ve_9(pve: str, takes: bool) -> None:
    template = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
    create = {**NEW, "template": template, "unprivileged": False, "features": {"nesting": False}}
    needs = needed(container={"gpus": [], "create": create}, pve=pve)
    assert needs.get("/", set()) == (listed_row("`unprivileged: false`, since Proxmox VE 9") if takes else set())


def test_the_order_of_a_new_vms_start_takes_a_right_to_the_node() -> None:
    needs = needed({"gpus": [], "create": {**NEW, "options": {"startup": "order=1"}}})
    assert needs["/"] == listed_row("`startup` among a new VM's `options`")


@pytest.mark.parametrize(("qemu_server", "takes"), [("9.1.12", False), ("9.1.13", True), ("9.2.6", True)])
def test_a_custom_processor_model_takes_a_right_since_qemu_server_9_1_13(qemu_server: str, takes: bool) -> None:
    create = {**NEW, "cpu": "custom-mine,flags=+aes"}
    needs = needed({"gpus": [], "create": create}, packages={"qemu-server": qemu_server})
    assert needs.get("/mapping/cpu/mine", set()) == (
        listed_row("a custom `cpu`, since Proxmox VE 9.2") if takes else set()
    )
    assert not any(path.startswith("/mapping/cpu") for path in needed({"gpus": [], "create": NEW}))


def test_what_only_root_may_set_is_told_from_options_with_a_privilege() -> None:
    """PVE::API2::Qemu, check_vm_modify_config_perm, check_vm_create_serial_perm, check_usb_perm; PVE::Storage, check_volume_access."""
    anybodys = {"numa0": "cpus=0", "serial0": "socket", "usb0": "spice", "usb1": "mapping=key", "virtiofs0": "films"}
    anybodys |= {"startup": "order=1", "net1": "virtio", "usb2": "host=spice,usb3=1", "usb5": "usb3=1,Spice"}
    anybodys |= {"cdrom": "local:iso/debian.iso", "freeze": "1", "scsi2": "file=fast:32,serial=/a"}
    anybodys |= {"rng0": "/dev/urandom"}
    roots = {
        "affinity": "0-3",
        "args": "-x",
        "hookscript": "local:snippets/x",
        "serial1": "/dev/ttyS0",
        "arch": "x86_64",
    }
    roots |= {"scsi1": "/dev/disk/by-id/ata-a,backup=0", "sata5": "file=/dev/sdb"}
    roots |= {
        "usb3": "host=1-2",
        "usb4": "usb3=1,host=0951:1666",
        "parallel0": "/dev/parport0",
        "usb6": "0951:1666",
        "usb7": "usb3=1,1-2",
    }
    assert rights.roots_alone({**anybodys, **roots}) == [*roots]


class ApiWithoutRights:
    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def get(self, resource: str, _wanted: str, **_parameters: Any) -> Any:
        return [{"node": "pve"}] if resource == "nodes" else {}


def test_what_only_root_may_set_is_refused_beside_missing_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    from homelab.host import plan

    monkeypatch.setattr(probe, "Api", ApiWithoutRights)
    host, facts = hosts.settings(api=API, node="pve"), hosts.desktop()
    create = {**NEW, "options": {"affinity": "0-3", "startup": "order=1"}}
    vms = {"sandbox": Vm.model_validate({"host": "pve", "vmid": 103, "create": create})}
    roots, lacking = probe.check("pve", host, facts, plan.wanted(facts, host), vms, {})
    assert roots.wanted == "vms.sandbox.create.options.affinity" and "homelab@pve!pulumi" in roots.found
    assert "Sys.Modify on /" in lacking.found


def test_a_host_without_an_api_needs_no_rights() -> None:
    facts = hosts.desktop()
    from homelab.host import plan

    host = hosts.settings()
    assert probe.check("pve", host, facts, plan.wanted(facts, host), {}, {}) == []


USERS = """user:homelab@pve:1:0::::::
token:homelab@pve!pulumi:0:0::
token:homelab@pve!narrow:0:1::
group:admins:homelab@pve,other@pve:
group:others:other@pve:
role:Homelab:VM.Audit,VM.PowerMgmt:
role:Guests:VM.Audit:
"""
LACKING = {"/vms/103": {"VM.Config.HWType"}}


@pytest.mark.parametrize(
    ("entries", "who", "expected"),
    [
        (
            "acl:1:/vms:homelab@pve:Homelab:",
            "homelab@pve!pulumi",
            ['pveum role modify Homelab --append 1 --privs "VM.Config.HWType"'],
        ),
        (
            "acl:1:/vms:@admins:Guests:",
            "homelab@pve",
            ['pveum role modify Guests --append 1 --privs "VM.Config.HWType"'],
        ),
        (  # beside a role of Proxmox VE's own, where that one is, for the group that has it
            "acl:1:/:@admins:PVEAuditor:",
            "homelab@pve",
            [
                'pveum role add Homelab2 --privs "VM.Config.HWType"',
                "pveum acl modify / --groups 'admins' --roles Homelab2",
            ],
        ),
        (  # a deeper entry is the one that counts; one that doesn't propagate doesn't
            "acl:1:/vms:homelab@pve:Homelab:\nacl:0:/vms/103:homelab@pve:Guests:\nacl:0:/:homelab@pve:PVEAdmin:",
            "homelab@pve",
            ['pveum role modify Guests --append 1 --privs "VM.Config.HWType"'],
        ),
        (  # a separated token takes it for itself and for its user
            "acl:1:/vms:homelab@pve:Homelab:\nacl:1:/vms:homelab@pve!narrow:Guests:",
            "homelab@pve!narrow",
            [
                'pveum role modify Guests --append 1 --privs "VM.Config.HWType"',
                'pveum role modify Homelab --append 1 --privs "VM.Config.HWType"',
            ],
        ),
        *(
            (
                entries,
                "homelab@pve",
                [
                    'pveum role add Homelab2 --privs "VM.Config.HWType"',
                    "pveum acl modify /vms --users 'homelab@pve' --roles Homelab2",
                ],
            )
            for entries in ("", "acl:0:/vms:homelab@pve:Homelab:", "acl:1:/vms:@others:Homelab:")
        ),
        (
            "acl:1:/vms:homelab@pve:NoAccess:",
            "homelab@pve",
            ["pveum acl delete /vms --users 'homelab@pve' --roles NoAccess"],
        ),
        ("role:All:VM.Audit,VM.Config.HWType:\nacl:1:/vms:homelab@pve:All:", "homelab@pve", []),
    ],
)
def test_a_right_is_added_where_it_counts(entries: str, who: str, expected: list[str]) -> None:
    assert commands(Permissions.parse(USERS + entries), who, LACKING) == expected


def test_a_right_to_the_root_alone_gives_none_to_what_is_below() -> None:
    lacking = {"/": {"Sys.Modify"}, "/vms/103": {"VM.Audit"}}
    assert commands(Permissions(), "homelab@pve", lacking) == [
        'pveum role add Homelab --privs "Sys.Modify VM.Audit"',
        "pveum acl modify / --propagate 0 --users 'homelab@pve' --roles Homelab",
        "pveum acl modify /vms --users 'homelab@pve' --roles Homelab",
    ]


def test_the_advice_holds_all_that_is_missing_in_one_go() -> None:
    access = Permissions.parse(USERS + "acl:1:/vms:homelab@pve:Homelab:\nacl:1:/mapping/pci:homelab@pve:Homelab:")
    text = advice(
        access, "homelab@pve", {"/vms/103": {"VM.Config.HWType"}, "/mapping/pci/a": {"Mapping.Use|Mapping.Audit"}}
    )
    assert '`pveum role modify Homelab --append 1 --privs "Mapping.Audit VM.Config.HWType"`' in text


@pytest.mark.parametrize(
    ("either", "lesser"),
    [
        ("Datastore.AllocateSpace|Datastore.Audit", "Datastore.Audit"),
        ("Mapping.Modify|Mapping.Use", "Mapping.Use"),
        ("VM.GuestAgent.Unrestricted|VM.GuestAgent.Audit", "VM.GuestAgent.Audit"),
        ("VM.Config.Disk|VM.Config.CDROM", "VM.Config.Disk"),
    ],
)
def test_of_several_the_lesser_is_named(either: str, lesser: str) -> None:
    assert rights.least(either.split("|")) == lesser


def test_lines_of_other_kinds_and_broken_ones_are_passed_over() -> None:
    assert Permissions.parse("pool:p::100:\n\nrole\nacl:1\nnonsense\n").entries == []
    assert Permissions.parse("token:a\ngroup\nacl:1:/vms:,:Homelab\nacl:1:/vms:a@pve:,\n") == Permissions()
    assert Permissions.parse("pool:1:/vms:homelab@pve:Homelab:").entries == []
