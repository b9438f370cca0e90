"""From a reading and answers to settings, rights and commands (`homelab init`): what is decided, without a host."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml

from homelab import rights
from homelab.errors import HomelabError
from homelab.host.facts import HostFacts
from homelab.init import cards as init_cards
from homelab.init import choices, proposal, stacks, storages
from homelab.init.api_user import making, name_for, undoing, users
from homelab.init.choices import Choices, Stack, Use
from homelab.init.merge import merged
from homelab.init.present import present
from homelab.init.proposal import OPEN, existing, propose
from homelab.nvidia.reading import SystemReading
from homelab.nvidia.request import SystemFacts
from homelab.settings import parse
from tests.conftest import PROJECT
from tests.unit import hosts

# A certificate's DER may be any bytes to a fingerprint.
DER = b"not looked into"
PEM = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(DER).decode()}\n-----END CERTIFICATE-----\n"
GUESTS: dict[str, Any] = {
    "running": [103, 901],
    "configs": [
        {"kind": "vm", "id": 103, "lines": "name: Sandbox\nmachine: q35\nmemory: 16384\n"},
        {"kind": "lxc", "id": 901, "lines": "hostname: ai-lab\nunprivileged: 1\n"},
        {"kind": "lxc", "id": 902, "lines": "hostname: old\n"},
    ],
    "mappings": "",
    "reservations": "",
}
CLUSTER = {"node": "pve", "certificate": PEM, "places": "pve/qemu-server/103.conf\nother/lxc/100.conf"}
ACCESS = {"address": "192.168.0.202", "ssh": {"hostKey": hosts.KEY, "privateKeyFile": "~/.ssh/id_ed25519"}}


def host(*more: dict[str, Any], **changes: Any) -> HostFacts:
    return hosts.desktop(*more, **{"guests": GUESTS, "cluster": CLUSTER, **changes})


# -- cards ------------------------------------------------------------------------------------------------------------
def test_cards_have_the_names_that_people_know() -> None:
    found = init_cards.cards(host())
    assert [(card.key, str(card)) for card in found] == [
        ("rtx5090", "RTX 5090 [10de:2b85] at 0000:01:00"),
        ("card", "graphics card [1002:164e] at 0000:0b:00"),
    ]
    assert found[0].settings == {"match": "10de:2b85"}


def test_identical_cards_get_names_and_addresses_of_their_own() -> None:
    found = [card for card in init_cards.cards(host(*hosts.gpu("0000:03:00", 18))) if card.is_nvidia]
    assert [card.key for card in found] == ["rtx5090", "rtx5090-2"]
    assert found[1].settings == {"match": "10de:2b85", "address": "0000:03:00"}


def test_a_virtual_function_is_a_card_of_its_own_for_vms_alone() -> None:
    whole, sound = hosts.gpu("0000:03:00", 18)
    virtual = {**whole, "address": "0000:03:00.4", "physfn": "0000:03:00.0", "group": 19, "driver": ""}
    facts = host({**whole, "vfs": 1}, sound, virtual)
    [_, owner, function, _] = init_cards.cards(facts)
    assert (owner.place, function.place, function.settings) == (
        "0000:03:00",
        "0000:03:00.4",
        {"address": "0000:03:00.4"},
    )
    assert init_cards.possible_uses(facts, owner, hosts.settings()) == {"lxc", "host"}
    assert init_cards.possible_uses(facts, function, hosts.settings()) == {"vm"}
    # Nobody knows which of them all is meant.
    assert choices.suggested(facts, function, "pve") == Use("none")


def test_what_a_person_has_to_accept_is_the_screen_and_nothing_else() -> None:
    [card, screen] = init_cards.cards(host())
    assert init_cards.screen_lost(host(), card, hosts.settings()) is None
    lost = init_cards.screen_lost(host(), screen, hosts.settings())
    assert lost is not None and "boot_vga" in lost.found
    used = host(guests={**GUESTS, "configs": [{"kind": "lxc", "id": 901, "lines": "dev0: /dev/dri/card1\n"}]})
    assert init_cards.screen_lost(used, screen, hosts.settings()) is not None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("RTX 3060 Lite Hash Rate", "rtx3060-lite-hash-rate"),
        ("A100 80GB PCIe", "a100-80gb-pcie"),
        ("Tesla T4", "tesla-t4"),
        ("UHD Graphics 770", "uhd-graphics-770"),
        ("Matrox Electronics Systems Ltd. G200eR2", "bmc-g200er2"),
        ("Matrox Electronics Systems Ltd. MGA G200e", "bmc-g200e"),
        ("Matrox Electronics Systems Ltd. M9120", "matrox-m9120"),
        ("ASPEED Technology, Inc. ASPEED Graphics Family", "bmc-aspeed"),
        ("", "card"),
        ("3060", "card-3060"),
        ("Größe 1", "gr-e-1"),
        ("x" * 60, "x" * 36),
    ],
)
def test_a_name_for_the_settings_is_one_that_they_take(name: str, key: str) -> None:
    assert init_cards.key_of(name, (), "card") == key
    hosts.settings(gpus={key: {"match": "10de:2b85"}})


def test_a_card_is_shown_with_its_group_its_driver_and_who_uses_it() -> None:
    configs = [{"kind": "lxc", "id": 901, "lines": "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n"}]
    facts = host(guests={**GUESTS, "configs": configs}, nvidia_minors={"0000:01:00.0": 0})
    [card, screen] = init_cards.cards(facts)
    assert init_cards.lines(facts, card, "pve") == [
        "0000:01:00.0 graphics card [10de:2b85], driver nouveau",
        "0000:01:00.1 audio device [10de:22e8], driver snd_hda_intel",
        "IOMMU group 16: alone",
        "used by: container 901",
    ]
    [refusal] = init_cards.refused(facts, card, hosts.settings(), "vm")
    assert "containers that use it: 901" in refusal.found
    assert init_cards.refused(facts, card, hosts.settings(), "lxc") == []
    assert "boot_vga" in init_cards.refused(facts, screen, hosts.settings(), "vm")[0].found
    assert init_cards.possible_uses(facts, card, hosts.settings()) == {"lxc", "host"}


def test_nobody_is_asked_about_the_hosts_screen_unless_it_is_used_or_there_is_no_other_card() -> None:
    def left_out(facts: HostFacts, configured: tuple[str, ...] = ()) -> list[str]:
        return [card.place for card in init_cards.not_asked_about(facts, init_cards.cards(facts), "pve", configured)]

    [card, screen] = init_cards.cards(host())
    assert left_out(host()) == [screen.place]
    assert left_out(host(), (screen.place,)) == []
    assert left_out(host(framebuffers={card.place + ".0": ["BOOTFB"]}), (screen.place,)) == [card.place]
    using = [*GUESTS["configs"], {"kind": "vm", "id": 104, "lines": f"name: b\nhostpci0: {screen.place},pcie=1\n"}]
    assert left_out(host(guests={**GUESTS, "configs": using})) == []
    facts = host()
    assert init_cards.not_asked_about(facts, [screen], "pve", ()) == []


# -- choices ----------------------------------------------------------------------------------------------------------
def test_who_has_a_card_is_preselected_else_the_only_guest_that_could() -> None:
    [card, screen] = init_cards.cards(host())
    assert choices.suggested(host(), card, "pve") == Use("vm", (103,))
    assert choices.suggested(host(), screen, "pve") == Use("none")
    drawn_on = host(framebuffers={"0000:01:00.0": ["BOOTFB"]})  # what the firmware doesn't mark
    assert choices.suggested(drawn_on, card, "pve") == Use("none")
    two = [*GUESTS["configs"], {"kind": "vm", "id": 104, "lines": "name: b\nhostpci0: 0000:01:00,pcie=1\n"}]
    assert choices.suggested(host(guests={**GUESTS, "configs": two}), card, "pve") == Use("vm", (104,))
    with_driver = host(nvidia_minors={"0000:01:00.0": 0})
    assert choices.suggested(with_driver, card, "pve") == Use("none")  # two containers: nobody knows which
    named = [{"kind": "lxc", "id": 902, "lines": "dev0: /dev/nvidia0,mode=0666\n"}]
    using = host(nvidia_minors={"0000:01:00.0": 0}, guests={**GUESTS, "configs": named})
    assert choices.suggested(using, card, "pve") == Use("lxc", (902,))


@pytest.mark.parametrize("name", ["rtx5090", "0000:01:00", "01:00", "10de:2b85", "RTX5090"])
def test_a_card_is_named_by_its_name_its_slot_or_its_id(name: str) -> None:
    facts = host()
    card, use = choices.parse_card(f"{name}=vm:103", init_cards.cards(facts), facts)
    assert (card.key, use) == ("rtx5090", Use("vm", (103,)))


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("lxc:901,902", Use("lxc", (901, 902))),
        ("lxc:901,901", Use("lxc", (901,))),
        ("host", Use("host")),
        ("none", Use("none")),
        ("new-vm:110", Use("new-vm", (110,))),
        ("new-vm", Use("new-vm", (101,))),  # another node of the cluster has 100
    ],
)
def test_what_a_card_is_for(text: str, use: Use) -> None:
    assert choices.parse_use(text, host()) == use


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vm:104", "there are: VM 103 (Sandbox), running"),
        ("vm:901", "container 901 (ai-lab), running"),
        ("lxc:901,103", "VM 103 (Sandbox), running"),
        ("new-vm:103", "VM 103 (Sandbox), running"),
        ("vm:", "vm:"),
        ("", "nothing"),
        ("lxc:901,", "lxc:901,"),
    ],
)
def test_what_a_card_can_not_be_for_is_named(text: str, found: str) -> None:
    with pytest.raises(HomelabError) as error:
        choices.parse_use(text, host())
    assert error.value.found == found


@pytest.mark.parametrize("name", ["rtx4090", "", "10de:22e8"])
def test_a_card_that_is_not_there_is_named_with_those_that_are(name: str) -> None:
    facts = host()
    with pytest.raises(HomelabError, match="rtx5090 \\(RTX 5090"):
        choices.parse_card(f"{name}=host", init_cards.cards(facts), facts)


def test_what_to_write_names_a_card_and_a_guest_that_are_there() -> None:
    """Not the console of a server's board, and no VM of an example."""
    bmc = hosts.device("0000:00:03.0", "102b:0538", "030000", 30, driver="mgag200")
    facts = host(bmc)
    cards = init_cards.cards(facts)
    assert cards[0].id == "102b:0538" and choices.example(cards, facts) == "rtx5090=vm:103"
    nobody = replace(facts, guests=replace(facts.guests, configs=[]))
    with pytest.raises(HomelabError) as error:
        choices.parse_card("big=vm:7", cards, nobody)
    assert error.value.next == "write it as rtx5090=new-vm"


def test_any_setting_can_be_given() -> None:
    assert choices.parse_setting("vms.sandbox.machine=q35", "pve") == {"homelab:vms": {"sandbox": {"machine": "q35"}}}
    assert choices.parse_setting("homelab:hosts.pve.gpus.a.allowConsole=true", "pve") == {
        "homelab:hosts": {"pve": {"gpus": {"a": {"allowConsole": True}}}}
    }
    assert choices.parse_setting('hosts.pve.nvidia.driver="580"', "pve") == {
        "homelab:hosts": {"pve": {"nvidia": {"driver": "580"}}}
    }
    # As a refusal names it, without the host.
    assert choices.parse_setting("gpus.a.address=01:00.0", "pve") == {
        "homelab:hosts": {"pve": {"gpus": {"a": {"address": "01:00.0"}}}}
    }
    assert choices.parse_setting("iommu.allowUnsafeInterrupts=true", "pve")["homelab:hosts"]["pve"]
    date = choices.parse_setting("vms.sandbox.create.options.startdate=2026-11-26", "pve")
    assert 'startdate: "2026-11-26"\n' in merged("", date)
    for wrong in ("vms", "=1", "vms..x=1"):
        with pytest.raises(HomelabError, match="--set"):
            choices.parse_setting(wrong, "pve")


# -- NVIDIA's software --------------------------------------------------------------------------------------------------
def test_the_recommended_driver_comes_first_and_what_can_not_work_is_not_offered() -> None:
    offered = stacks.drivers("host", stacks.of_host(host(), ["10de:2b85"]))
    assert offered[0] == "580"
    assert offered and all(int(branch) >= 570 for branch in offered)  # an RTX 5090 takes 570 or later


def test_only_cudas_that_the_hosts_driver_runs_are_offered_to_a_container() -> None:
    offered = stacks.releases("lxc", stacks.in_container("550.163.01"), None)
    assert offered[0] == "12.4" and "12.8" not in offered
    assert "12.8" in stacks.releases("lxc", stacks.in_container("580.105.08"), None)


# -- the API's user -----------------------------------------------------------------------------------------------------
NEEDS = {"/vms/103": {"VM.Audit", "VM.PowerMgmt"}, "/mapping/pci": {"Mapping.Modify"}}
MADE = """user:homelab@pve:1:0::::homelab init, stack homelab, role Homelab::
token:homelab@pve!pulumi:0:0:homelab init, stack homelab:
role:Homelab:Mapping.Modify,VM.Audit,VM.PowerMgmt:
acl:1:/mapping/pci:homelab@pve:Homelab:
acl:1:/vms:homelab@pve:Homelab:
"""


def test_the_user_is_made_with_exactly_the_rights_that_are_needed() -> None:
    made = making("homelab", "user:root@pam:1:0:::::: \n", NEEDS, has_secret=False, pve="9.1.1")
    assert made.token == "homelab@pve!pulumi" and made.secret
    assert made.commands == [
        "pveum user add homelab@pve --comment 'homelab init, stack homelab, role Homelab'",
        'pveum role add Homelab --privs "Mapping.Modify VM.Audit VM.PowerMgmt"',
        "pveum acl modify /mapping/pci --users 'homelab@pve' --roles Homelab",
        "pveum acl modify /vms --users 'homelab@pve' --roles Homelab",
        "pveum user token add homelab@pve pulumi --privsep 0 --comment 'homelab init, stack homelab' --output-format json",
    ]


def test_what_is_there_is_not_made_again_and_what_lacks_is_added() -> None:
    assert making("homelab", MADE, NEEDS, has_secret=True, pve="9.1.1").commands == []
    more = NEEDS | {"/vms/104": {"VM.Config.Memory"}}
    assert making("homelab", MADE, more, has_secret=True, pve="9.1.1").commands == [
        'pveum role modify Homelab --append 1 --privs "VM.Config.Memory"'
    ]


def test_a_token_whose_secret_nobody_has_is_made_anew() -> None:
    assert making("homelab", MADE, NEEDS, has_secret=False, pve="9.1.1").commands == [
        "pveum user token delete homelab@pve pulumi",
        "pveum user token add homelab@pve pulumi --privsep 0 --comment 'homelab init, stack homelab' --output-format json",
    ]


@pytest.mark.parametrize("cut", range(1, 5))
def test_an_interrupted_making_is_completed(cut: int) -> None:
    lines = MADE.splitlines(keepends=True)
    order = [lines[0], lines[2], lines[3], lines[4], lines[1]]
    made = making("homelab", "".join(order[:cut]), NEEDS, has_secret=False, pve="9.1.1")
    whole = making("homelab", "", NEEDS, has_secret=False, pve="9.1.1").commands
    assert made.commands == whole[cut:]


def test_a_user_that_a_person_made_is_left_alone() -> None:
    theirs = "user:homelab@pve:1:0::::mine::\nrole:Homelab:VM.Audit:\nacl:1:/vms:homelab@pve:Homelab:\n"
    assert name_for("homelab", theirs) == "homelab2@pve"
    made = making("homelab", theirs, NEEDS, has_secret=False, pve="9.1.1").commands
    assert not any("homelab@pve" in command or "role modify Homelab " in command for command in made)
    assert made[1].startswith("pveum role add Homelab2 ")


def test_a_second_stack_shares_a_role_that_fits_and_extends_none_that_others_have() -> None:
    second = making("gaming", MADE, NEEDS, has_secret=False, pve="9.1.1")
    assert second.name == "homelab2@pve"
    assert not any("pveum role" in command for command in second.commands)
    assert second.commands[0].endswith("'homelab init, stack gaming, role Homelab'")
    both = MADE + (
        "user:homelab2@pve:1:0::::homelab init, stack gaming, role Homelab::\ntoken:homelab2@pve!pulumi:0:0::\n"
        "acl:1:/mapping/pci:homelab2@pve:Homelab:\nacl:1:/vms:homelab2@pve:Homelab:\n"
    )
    more = making("gaming", both, NEEDS | {"/vms/104": {"VM.Config.Memory"}}, has_secret=True, pve="9.1.1").commands
    # What is made is marked before it is there.
    assert more[0] == "pveum user modify homelab2@pve --comment 'homelab init, stack gaming, role Homelab Homelab2'"
    assert more[1].startswith("pveum role add Homelab2 ")
    assert more[2:] == ["pveum acl modify /vms --users 'homelab2@pve' --roles Homelab2"]


BY_HAND = "role:Homelab:Mapping.Modify,VM.Audit,VM.PowerMgmt:\n"


def test_a_role_that_a_person_made_is_neither_shared_nor_extended_nor_deleted() -> None:
    made = making("homelab", BY_HAND, NEEDS, has_secret=False, pve="9.1.1").commands
    assert made[0].endswith("'homelab init, stack homelab, role Homelab2'") and " add Homelab2 " in made[1]
    assert not any(re.search(r"\bHomelab\b(?!2)", command) for command in made if "role" in command.split()[1])
    # Somebody gave it to our user by hand: more rights come beside it.
    given = (
        "user:homelab@pve:1:0::::homelab init, stack homelab::\ntoken:homelab@pve!pulumi:0:0::\n"
        f"{BY_HAND}acl:1:/vms:homelab@pve:Homelab:\nacl:1:/mapping/pci:homelab@pve:Homelab:\n"
    )
    more = making("homelab", given, {"/vms/1": {"VM.Clone"}}, has_secret=True, pve="9.1.1").commands
    assert not any("role modify Homelab " in command for command in more)
    assert more[0] == "pveum user modify homelab@pve --comment 'homelab init, stack homelab, role Homelab2'"
    undone = undoing("homelab", given)
    assert not any("role delete" in command for command in undone.commands)
    assert undone.left == ["the role Homelab stays: homelab init didn't make it"]


TWO_ROLES = MADE.replace("role Homelab:", "role Homelab Homelab2:") + (
    "role:Homelab2:VM.Config.Memory:\nacl:1:/vms:homelab@pve:Homelab2:\n"
)


@pytest.mark.parametrize("cut", range(1, 9))
def test_an_undo_that_ended_anywhere_is_completed_by_the_next(cut: int) -> None:
    whole = undoing("homelab", TWO_ROLES).commands
    assert len(whole) == 8 - 1 and "pveum role delete Homelab2" in whole
    config = TWO_ROLES
    for command in whole[: min(cut, len(whole))]:
        words = command.split()
        gone = {
            "token": lambda w: f"token:{w[4]}!{w[5]}:",
            "acl": lambda w: f"acl:1:{w[3]}:{w[5]}:{w[7]}:",
            "role": lambda w: f"role:{w[3]}:",
            "user": lambda w: f"user:{w[3]}:",
        }["token" if words[2] == "token" else words[1]](words)
        kept = [line for line in config.splitlines(keepends=True) if not line.startswith(gone)]
        assert len(kept) == len(config.splitlines()) - 1, command
        config = "".join(kept)
    assert undoing("homelab", config).commands == whole[cut:]


def test_a_role_that_another_stacks_user_has_marked_stays() -> None:
    other = "user:homelab2@pve:1:0::::homelab init, stack gaming, role Homelab::\n"
    assert undoing("homelab", MADE + other).left == ["the role Homelab stays: homelab2@pve has it, too"]


@pytest.mark.parametrize(
    "row", ["", ":", "user", "user:", "user:x@pve", "acl:1", "role::", "token:x", "::::::::", "user:homelab@pve:a:b:c"]
)
def test_a_row_of_an_odd_form_is_nobodys(row: str) -> None:
    assert making("homelab", f"{row}\n{MADE}", NEEDS, has_secret=True, pve="9.1.1").name.startswith("homelab")
    assert "pveum user delete homelab@pve" in undoing("homelab", f"{row}\n{MADE}").commands


@pytest.mark.parametrize(("pve", "privilege"), [("8.4.14", "VM.Monitor"), ("9.1.1", "VM.GuestAgent.Audit")])
def test_of_privileges_that_would_do_one_is_taken_that_the_release_has(pve: str, privilege: str) -> None:
    made = making("homelab", "", {"/vms/103": {"VM.GuestAgent.Audit|VM.Monitor"}}, has_secret=False, pve=pve)
    assert made.commands[1] == f'pveum role add Homelab --privs "{privilege}"'


def test_undo_takes_away_what_was_made_and_the_user_last() -> None:
    assert undoing("homelab", MADE).commands == [
        "pveum user token delete homelab@pve pulumi",
        "pveum acl delete /mapping/pci --users homelab@pve --roles Homelab",
        "pveum acl delete /vms --users homelab@pve --roles Homelab",
        "pveum role delete Homelab",
        "pveum user delete homelab@pve",
    ]
    assert undoing("other", MADE).commands == []


def test_undo_leaves_a_role_that_somebody_else_has_and_one_that_init_did_not_make() -> None:
    shared = undoing("homelab", MADE + "acl:1:/vms/7:ann@pve:Homelab:\n")
    assert not any("role delete" in command for command in shared.commands)
    assert shared.left == ["the role Homelab stays: ann@pve has it, too"]
    by_hand = undoing("homelab", MADE.replace(", role Homelab", ""))
    assert by_hand.left == ["the role Homelab stays: homelab init didn't make it"]
    # A group or a token that has it is somebody, too.
    for who in ("@admins", "ann@pve!t"):
        assert undoing("homelab", MADE + f"acl:1:/vms/7:{who}:Homelab:\n").left


@pytest.mark.parametrize("name", ["$(reboot)@pve", "`id`@pve", "alice@pam", "homelabx@pve", "homelab@ldap"])
def test_a_comment_like_ours_makes_no_user_ours_that_init_would_not_have_named_so(name: str) -> None:
    config = f"user:{name}:1:0::::homelab init%2C stack homelab:\ntoken:{name}!pulumi:0:0::\n"
    assert undoing("homelab", config).commands == []
    assert name_for("homelab", config) == "homelab@pve"


def test_a_users_comment_is_read_as_proxmox_ve_writes_it() -> None:
    [user] = users("user:homelab@pve:1:0::::homelab init%2C stack a.b_c-d%2C role Homelab2::\n")
    assert (user.stack, user.roles) == ("a.b_c-d", ("Homelab2",))
    [other] = users("user:x@pve:1:0::::see homelab init, stack homelab::\n")
    assert other.stack == ""


# -- the proposal -------------------------------------------------------------------------------------------------------
def proposed(
    decided: Choices, text: str = "", facts: HostFacts | None = None, stack: str = "homelab"
) -> proposal.Proposal:
    facts = facts or host()
    before = existing(text, "Pulumi.homelab.yaml")
    access: dict[str, Any] = {} if before.values else dict(ACCESS)
    if any(use.setting in ("vm", "shared") for use in decided.uses.values() if use.kind != "none"):
        access["api"] = proposal.api_settings(stack, {}, facts, 8006)
    values = choices.settings_of(decided, "pve", access, facts, init_cards.cards(facts), before.values)
    return propose(before, values, stack, "pve", facts, "Pulumi.homelab.yaml")


def config(made: proposal.Proposal) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(made.text)["config"]
    return found


def test_a_card_for_a_vm() -> None:
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}))
    assert made.refused == []
    found = config(made)
    digits = hashlib.sha256(DER).hexdigest().upper()
    shown = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    assert found["homelab:hosts"]["pve"] == {
        **ACCESS,
        "api": {"token": "homelab@pve!pulumi", "tokenSecret": OPEN, "fingerprint": shown},
        "gpus": {"rtx5090": {"match": "10de:2b85", "use": "vm"}},
    }
    assert found["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    assert found["homelab:containers"] == {}
    assert made.making is not None
    assert (
        'pveum role add Homelab --privs "Mapping.Modify Mapping.Use VM.Audit VM.Config.HWType VM.PowerMgmt"'
        in made.making.commands
    )


IDS = "10de:2b85,10de:22e8"
VFIO_CONF = "/etc/modprobe.d/vfio.conf"


def with_driver(driver: str) -> list[dict[str, Any]]:
    """The host's functions, its RTX 5090 with this driver."""
    others = [asdict(one) for one in host().devices if one.slot != "0000:01:00"]
    return [*others, *({**one, "driver": driver} for one in hosts.gpu())]


@pytest.mark.parametrize("driver", ["vfio-pci", "nouveau"])
def test_a_card_that_ids_bind_by_hand_is_proposed_for_containers_with_a_yes(driver: str) -> None:
    """Also where they had no effect so far: the next start may be the first with it."""
    facts = host(devices=with_driver(driver), vfio_ids=IDS, vfio_files={VFIO_CONF: IDS})
    (card, _) = init_cards.cards(facts)
    assert init_cards.possible_uses(facts, card, hosts.settings({})) == {"vm", "lxc", "host"}
    made = proposed(Choices({"0000:01:00": Use("host")}), facts=facts)
    assert made.refused == [] and config(made)["homelab:hosts"]["pve"]["takeOver"] is True
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}), facts=facts)
    assert made.refused == [] and "takeOver" not in config(made)["homelab:hosts"]["pve"]


def test_what_somebody_set_up_for_cards_is_said_with_what_becomes_of_it() -> None:
    assert present(host(), init_cards.cards(host()), "pve") == []
    mount = "lxc.mount.entry: /dev/nvidia{0} dev/nvidia{0} none bind\n"
    hostpci, script = "hostpci0: 0000:01:00,pcie=1,x-vga=1", "hookscript: local:snippets/gpu.sh"
    configs = [
        {"kind": "vm", "id": 103, "lines": f"name: Sandbox\n{hostpci}\n{script}\n"},
        {"kind": "vm", "id": 104, "lines": "hookscript: local:snippets/homelab-handover.sh\nargs: 0000:01:00.0"},
        {"kind": "lxc", "id": 901, "lines": mount.format(0)},
        {"kind": "lxc", "id": 902, "lines": mount.format(7)},
    ]
    facts = host(
        guests={**GUESTS, "configs": configs},
        nvidia_minors={"0000:01:00.0": 0},
        devices=with_driver("vfio-pci"),
        vfio_files={VFIO_CONF: IDS},
        vfio_mentions=["/etc/initramfs-tools/scripts/init-top/bind.sh"],
        cmdline={
            "running": "",
            "configured": "",
            "generated": "",
            "others": "root=/dev/sda quiet amd_iommu=on iommu=pt video=efifb:off pci=noaer nofb nomodeset "
            "vfio-pci.disable_vga=1 kvm.ignore_msrs=1 amdgpu.gttsize=98304 kvmfr=1 vfio-pci.ids=1022:15e3 "
            "pci-stub.ids=10de:1,10de:2",
        },
        module_lines=[
            "/etc/modprobe.d/vfio.conf: options vfio-pci ids=10de:2b85,10de:22e8 disable_vga=1",
            "/etc/modprobe.d/vfio.conf: softdep nouveau pre: vfio-pci",
            "/etc/modprobe.d/blacklist.conf: blacklist nvidia",
            "/usr/lib/modprobe.d/fbdev-blacklist.conf: blacklist nvidiafb",
            "/etc/modules: vfio",
            "/etc/modules: vfio_pci",
        ],
    )
    systems = {
        number: SystemReading(SystemFacts(), "1", frozenset(steps), (), libraries)
        for number, libraries, steps in (("901", "550.54.14", ()), ("902", "", ()), ("903", "580.95.05", ("driver",)))
    }
    words, lines, file, mention, option, script, past, container, without_card, libraries = present(
        facts, init_cards.cards(facts), "pve", systems
    )
    assert words == (
        "amd_iommu=on iommu=pt video=efifb:off pci=noaer nofb nomodeset vfio-pci.disable_vga=1 kvm.ignore_msrs=1 "
        "amdgpu.gttsize=98304 pci-stub.ids=10de:1,10de:2 on the kernel command line: kept, and not added a second time"
    )
    assert lines == (
        "/etc/modprobe.d/vfio.conf: softdep nouveau pre: vfio-pci; /etc/modprobe.d/blacklist.conf: blacklist nvidia; "
        "/etc/modules: vfio, vfio_pci: kept"
    )
    assert file.startswith(f"{VFIO_CONF}: kept; rtx5090 counts as bound by it")
    assert mention.startswith("/etc/initramfs-tools/scripts/init-top/bind.sh, which names vfio-pci: kept;")
    assert option.startswith(
        "hostpci0: 0000:01:00,pcie=1,x-vga=1 of VM 103: if the VM keeps rtx5090, `pulumi up` takes it over"
    )
    assert script.startswith("hookscript local:snippets/gpu.sh of VM 103: kept, and run as before")
    assert past.startswith(
        "args of VM 104, which gives it rtx5090 past Proxmox VE: kept; a card that is to go to a VM is refused"
    )
    assert container.startswith("lines for rtx5090 of container 901: kept")
    assert without_card.startswith("lines for NVIDIA's device nodes of container 902: kept; no card here has such")
    assert libraries.startswith("NVIDIA's libraries 550.54.14 in container 901: kept, unless")


VMS_BY_HAND = {
    103: "name: Sandbox\nhostpci0: 0000:01:00.0,pcie=1,x-vga=1\nhostpci1: 0000:01:00.1,pcie=1",
    104: "name: gaming\nonboot: 1\nhostpci0: 01:00,pcie=1",
    105: "name: golden\ntemplate: 1\nonboot: 1\nhostpci0: 0000:01:00,pcie=1",
}


def with_card_by_hand(*vms: int, running: tuple[int, ...] = ()) -> HostFacts:
    configs = [{"kind": "vm", "id": number, "lines": VMS_BY_HAND[number]} for number in vms]
    return host(guests={**GUESTS, "configs": configs, "running": running}, devices=with_driver("vfio-pci"))


def test_of_several_vms_that_have_a_card_by_hand_the_one_that_runs_is_meant() -> None:
    facts = with_card_by_hand(103, 104, 105)
    first, second, template = present(facts, init_cards.cards(facts), "pve")
    line = "hostpci0: 0000:01:00.0,pcie=1,x-vga=1, hostpci1: 0000:01:00.1,pcie=1 of VM 103: if the VM keeps rtx5090, "
    assert first.startswith(line)
    assert all(said.endswith("it stays, and only one of them can run with it") for said in (first, second))
    assert template == "hostpci0: 0000:01:00,pcie=1 of the template 105: kept; it never runs, so that it takes no card"
    for running, preset in (((), 104), ((103,), 103), ((104,), 104)):
        facts = with_card_by_hand(103, 104, 105, running=running)
        assert choices.suggested(facts, init_cards.cards(facts)[0], "pve") == Use("vm", (preset,))
    (only,) = present(with_card_by_hand(104), init_cards.cards(facts), "pve")
    assert only.endswith("`pulumi destroy` puts it back as it is")


def test_a_template_takes_no_card_and_keeps_none_from_others() -> None:
    facts = with_card_by_hand(105)
    assert choices.suggested(facts, init_cards.cards(facts)[0], "pve") == Use("none")
    with pytest.raises(HomelabError, match=r"VM 105 \(golden\), a template"):
        choices.parse_use("vm:105", facts)
    facts = host(
        guests={**GUESTS, "configs": [{"kind": "vm", "id": 105, "lines": VMS_BY_HAND[105]}]},
        devices=with_driver("vfio-pci"),
        vfio_ids=IDS,
        vfio_files={VFIO_CONF: IDS},
    )
    assert proposed(Choices({"0000:01:00": Use("host")}), facts=facts).refused == []


RULES, MODULES = "/etc/udev/rules.d/10-vfio.rules", "/etc/initramfs-tools/modules"


@pytest.mark.parametrize(
    ("driver", "found", "said"),
    [
        ("nouveau", {"vfio_files": {VFIO_CONF: IDS}}, f"{VFIO_CONF}: kept; it names rtx5090 for vfio-pci, without effect"),
        ("", {"vfio_rules": {RULES: ["0000:01:00.0"]}}, f"{RULES}: kept; it keeps rtx5090 for vfio-pci, whatever a word"),
        ("vfio-pci", {"vfio_rules": {RULES: ["0000:01:00.0"]}}, f"{RULES}: kept; it keeps rtx5090 for vfio-pci"),
        ("vfio-pci", {"vfio_files": {MODULES: IDS}}, f"{MODULES}: kept; it keeps rtx5090 for vfio-pci, whatever a word"),
    ],
)  # fmt: skip
def test_takeover_is_named_where_a_word_of_homelabs_can_count(driver: str, found: dict[str, Any], said: str) -> None:
    facts = host(devices=with_driver(driver), **found, vfio_mentions=list(found.get("vfio_rules", {})))
    (sentence,) = present(facts, init_cards.cards(facts), "pve")
    assert sentence.startswith(said) and ("takeOver: true" in sentence) is (VFIO_CONF in str(found))


SANDBOX_LINES = "name: Sandbox\nmachine: q35\n"
TAKEN = [{"gpu": "rtx5090", "takeOver": True}]
NOTE = json.dumps(
    {
        "identity": "",
        "record": {"hostpci0": {"ours": "mapping=rtx5090,pcie=1,x-vga=1", "before": "01:00,pcie=1,x-vga=1", "slot": "0000:01:00"}},
    }
)  # fmt: skip
HAND_MADE: dict[str, tuple[str, dict[str, Any], str | None, list[Any]]] = {
    "a raw line": ("hostpci0: 0000:01:00,pcie=1,x-vga=1,romfile=a.rom\n", {}, None, TAKEN),
    "a line for each function": ("hostpci0: 01:00.0,pcie=1\nhostpci1: 01:00.1,pcie=1\n", {}, None, TAKEN),
    "a mapping of its own": ("hostpci0: mapping=gpu0,pcie=1,x-vga=1\n", {}, "gpu0", TAKEN),
    "a mapping as this program would write it": ("hostpci0: mapping=gpu0,pcie=1\n", {}, "gpu0", ["rtx5090"]),
    "a stack that was lost": ("hostpci0: mapping=rtx5090,pcie=1,x-vga=1\n", {"ledger": {"vm/103": NOTE}}, None, TAKEN),
    "another card": ("hostpci0: 0000:05:00,pcie=1\n", {}, None, ["rtx5090"]),
}


def test_a_card_that_a_container_and_a_vm_have_in_turn_takes_a_driver_and_an_api_user() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0})
    use = choices.parse_use("shared:103,901", facts)
    assert (use.of_kind("vm", facts), use.of_kind("lxc", facts)) == ((103,), (901,))
    made = proposed(Choices({"0000:01:00": use}, host_stack=Stack("580")), facts=facts)
    found = config(made)
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"]["use"] == "shared"
    assert found["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    assert found["homelab:vms"]["sandbox"]["gpus"] == found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]
    for text in ("shared:103", "shared:901", "shared:103,999"):
        with pytest.raises(HomelabError, match="a VM and at least one container that have the card in turn"):
            choices.parse_use(text, facts)


@pytest.mark.parametrize("case", HAND_MADE)
def test_what_a_vm_has_by_hand_is_proposed_to_be_taken_over(case: str) -> None:
    line, more, mapping, expected = HAND_MADE[case]
    configs = [{"kind": "vm", "id": 103, "lines": SANDBOX_LINES + line}]
    entry = "gpu0\n\tmap id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1043:89e3\n"
    facts = host(guests={**GUESTS, "configs": configs, "mappings": entry if mapping else ""}, **more)
    decided = Choices({"0000:01:00": Use("vm", (103,))})
    made = proposed(decided, facts=facts)
    assert made.refused == []
    assert any("put back as it is on destroy" in said for said in made.remarks) is (":00" in line and expected == TAKEN)
    assert config(made)["homelab:vms"]["sandbox"]["gpus"] == expected
    assert config(made)["homelab:hosts"]["pve"]["gpus"]["rtx5090"].get("mapping") == mapping
    # Settings that have the card without that: the yes is added, and once.
    plain = re.sub(r"\n *takeOver: true", "", made.text)
    assert config(proposed(decided, plain, facts)) == config(made) == config(proposed(decided, made.text, facts))


def test_a_ballooning_vm_takes_one_privilege_more() -> None:
    configs = [{"kind": "vm", "id": 103, "lines": "name: Sandbox\nmachine: q35\nmemory: 16384\nballoon: 4096\n"}]
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}), facts=host(guests={**GUESTS, "configs": configs}))
    assert made.making is not None and "VM.Config.Memory" in made.making.commands[1]


def test_a_card_for_containers_takes_no_api_user() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    made = proposed(Choices({"0000:01:00": Use("lxc", (901,))}, guest_stack=Stack(cuda="12.8")), facts=facts)
    assert made.making is None and made.refused == []
    assert config(made)["homelab:containers"] == {
        "ai-lab": {"host": "pve", "ctid": 901, "gpus": ["rtx5090"], "nvidia": {"cuda": "12.8"}}
    }
    assert "api" not in config(made)["homelab:hosts"]["pve"]


def test_nothing_is_installed_in_a_container_that_is_off() -> None:
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    both = Choices({"0000:01:00": Use("lxc", (901, 902))}, guest_stack=Stack(cuda="12.8"))
    first = proposed(both, facts=facts)
    assert first.refused == []
    assert config(first)["homelab:containers"]["old"] == {"host": "pve", "ctid": 902, "gpus": ["rtx5090"]}
    # Once it runs, a second run adds what is installed in it.
    started = host(
        nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"}, guests={**GUESTS, "running": [901, 902]}
    )
    second = proposed(both, text=first.text, facts=started)
    assert config(second)["homelab:containers"]["old"]["nvidia"] == {"cuda": "12.8"}


def test_a_new_vm_and_its_rights() -> None:
    made = proposed(Choices({"0000:01:00": Use("new-vm", (110,))}, new_vm=choices.ChosenVm("gaming", "local-lvm")))
    assert made.refused == [] and made.making is not None
    vm = config(made)["homelab:vms"]["gaming"]
    assert vm["vmid"] == 110 and vm["create"]["disk"] == {"storage": "local-lvm", "size": 64}
    assert "VM.Allocate" in made.making.commands[1] and "SDN.Use" in made.making.commands[1]
    assert any("/storage/local-lvm" in command for command in made.making.commands)


def test_a_new_vm_from_a_known_image_has_it_downloaded_with_the_rights_that_this_takes() -> None:
    use = {"0000:01:00": Use("new-vm", (110,))}
    new = choices.ChosenVm("gaming", "local-lvm", image="ubuntu-24.04", into="nas", cloud={"user": "ubuntu"})
    made = proposed(Choices(use, new_vm=new))
    assert made.refused == [] and made.making is not None
    assert config(made)["homelab:hosts"]["pve"]["downloads"] == {
        "ubuntu-2404": {"image": "ubuntu-24.04", "storage": "nas"}
    }
    assert config(made)["homelab:vms"]["gaming"]["create"]["image"] == "ubuntu-2404"
    settings = parse({key.removeprefix("homelab:"): json.dumps(one) for key, one in config(made).items()})
    needs = rights.of_download(settings.hosts["pve"].downloads["ubuntu-2404"], "pve")
    granted = "\n".join(made.making.commands)
    for path, names in needs.items():
        assert path in granted
        assert all(rights.least(one.split("|")) in granted for one in names)
    # One that the host downloads already is taken as it is.
    again = proposed(Choices(use, new_vm=new), made.text)
    assert again.text.count("image: ubuntu-24.04") == 1


@pytest.mark.parametrize(
    ("content", "there", "known"),
    [
        ("images,iso", [], []),
        ("images,import", [], ["ubuntu-24.04", "ubuntu-22.04", "ubuntu-26.04", "debian-13", "debian-12"]),
        (
            "images,import",
            ["local:import/noble-server-cloudimg-amd64.qcow2"],
            ["ubuntu-22.04", "ubuntu-26.04", "debian-13", "debian-12"],
        ),
    ],
)
def test_known_cloud_images_are_offered_where_a_storage_takes_them_and_has_them_not(
    content: str, there: list[str], known: list[str]
) -> None:
    def ask(command: str) -> str:
        if "content" in command:
            return answers(*({"volid": volume} for volume in there)) if "import" in command else "[]"
        return answers({"storage": "local", "content": content, "active": 1})

    found = storages.offered("pve", ask, lambda odd: None)
    assert found.downloadable == known and storages.user_of("debian-13") == "debian"


def test_what_up_would_refuse_is_refused_with_the_same_words() -> None:
    screen = proposed(Choices({"0000:0b:00": Use("vm", (103,))}))
    assert screen.making is None and "boot_vga" in screen.refused[0].found
    i440 = [{"kind": "vm", "id": 103, "lines": "name: Sandbox\nmemory: 16384\n"}]
    made = proposed(Choices({"0000:01:00": Use("vm", (103,))}), facts=host(guests={**GUESTS, "configs": i440}))
    assert "vms.sandbox.machine: q35" in made.refused[0].next
    more = {"homelab:vms": {"sandbox": {"machine": "q35"}}}
    made = proposed(
        Choices({"0000:01:00": Use("vm", (103,))}, more=more), facts=host(guests={**GUESTS, "configs": i440})
    )
    assert made.refused == []


def test_a_second_run_moves_a_card_and_loses_nothing() -> None:
    first = proposed(Choices({"0000:01:00": Use("vm", (103,))})).text
    edited = first.replace("      vmid: 103", "      vmid: 103 # the first one\n      display: none").replace(
        f"tokenSecret: {OPEN}", "tokenSecret: {secure: v1:x}"
    )
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    second = proposed(Choices({"0000:01:00": Use("lxc", (901,))}, guest_stack=Stack()), text=edited, facts=facts)
    found = config(second)
    assert found["homelab:vms"]["sandbox"] == {"host": "pve", "vmid": 103, "display": "none", "gpus": []}
    assert found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"] == {"match": "10de:2b85", "use": "lxc"}
    assert "# the first one" in second.text and "{secure: v1:x}" in second.text


def test_the_example_that_nobody_filled_in_counts_for_nothing_and_any_other_file_does() -> None:
    text = (PROJECT / "Pulumi.homelab.yaml").read_text(encoding="utf-8")
    assert existing(text, "f").example
    filled = text.replace("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFILL+IN+WITH+ssh+keyscan+t+ed25519+ADDRESS0", hosts.KEY)
    assert not existing(filled, "f").example and "hosts" in existing(filled, "f").values
    assert existing("encryptionsalt: v1:x\n", "f").text == "encryptionsalt: v1:x\n"


@pytest.mark.parametrize(
    "text", ["config: [", "config:\n  homelab:hosts: {pve: {}}\n", "config: {}\nhomelab:hosts: {}\n"]
)
def test_a_file_that_the_program_would_not_load_is_not_added_to(text: str) -> None:
    with pytest.raises(HomelabError):
        proposed(Choices({"0000:01:00": Use("vm", (103,))}), text=text)


@pytest.mark.parametrize("config", ["[a]", "text", "3"])
def test_a_config_that_is_no_mapping_is_refused(config: str) -> None:
    with pytest.raises(HomelabError, match="config:"):
        existing(f"config: {config}\n", "Pulumi.homelab.yaml")


def test_an_api_user_of_the_persons_own_stays() -> None:
    mine = {"token": "me@pve!mine", "tokenSecret": {"secure": "v1"}, "fingerprint": "00"}
    assert proposal.api_settings("homelab", {"api": mine}, host(), 8006) is None
    ours = {"token": "homelab@pve!pulumi", "tokenSecret": {"secure": "v1"}, "caFile": "ca.pem"}
    assert proposal.api_settings("homelab", {"api": ours}, host(), 8006) == {"token": "homelab@pve!pulumi"}


def test_a_host_without_a_certificate_is_no_host_for_a_token() -> None:
    with pytest.raises(HomelabError, match="any machine that answers at the address"):
        proposal.api_settings("homelab", {}, host(cluster={"node": "pve"}), 8006)


# -- what a new VM is made of --------------------------------------------------------------------------------------------
def answers(*rows: Any) -> str:
    return "Last login: today\n" + json.dumps(list(rows))


def test_storages_and_volumes_are_those_of_the_known_form_and_each_other_row_is_named() -> None:
    good = {"storage": "local", "content": "iso,import", "active": 1}
    rows = [good, {**good, "storage": "off", "active": 0}, {**good, "storage": "text", "active": "1", "more": [1]}]
    odd: list[Any] = [
        None,
        "local",
        [],
        {"storage": 7, "content": "iso"},
        {"storage": "x", "content": None},
        {"content": "iso"},
    ]
    found, said = storages.storages(answers(*rows, *odd))
    assert [one.name for one in found] == ["local", "text"] and found[0].content == {"iso", "import"}
    assert len(said) == len(odd) and all("is ignored" in one for one in said)
    volumes = [
        {"volid": "local:import/b.qcow2"},
        {"volid": "local:import/a.RAW"},
        {"volid": "local:import/vm.ova"},
        {"volid": 3},
    ]
    assert storages.volumes(answers(*volumes), "import")[0] == ["local:import/a.RAW", "local:import/b.qcow2"]


@pytest.mark.parametrize("printed", ["", "null", "{}", "7", "no JSON", '"text"', "[1"])
def test_an_answer_that_is_no_list_is_one_clear_error(printed: str) -> None:
    with pytest.raises(HomelabError, match="as a list from pvesh"):
        storages.storages(printed)


def test_a_storages_name_is_quoted_for_the_hosts_shell() -> None:
    assert "'/nodes/pve/storage/a b/content'" in storages.listing_of("pve", "a b", "iso")


@pytest.mark.parametrize(
    ("image", "user"),
    [
        ("local:import/noble-server-cloudimg-amd64.img", "ubuntu"),
        ("local:import/debian-13-genericcloud-amd64.qcow2", "debian"),
        ("local:import/my.qcow2", ""),
    ],
)
def test_the_user_of_a_cloud_image_is_preselected_where_it_is_known(image: str, user: str) -> None:
    assert storages.user_of(image) == user


# -- the example --------------------------------------------------------------------------------------------------------------
def test_what_pulumi_has_put_into_the_example_goes_into_the_new_file() -> None:
    example = (PROJECT / "Pulumi.homelab.yaml").read_text()
    salt = "encryptionsalt: v1:abc=:v1:def=:ghi==\n"
    before = existing(example + salt, "Pulumi.homelab.yaml")
    assert before.example
    made = propose(
        before, choices.settings_of(Choices(), "pve", ACCESS, host(), [], {}), "homelab", "pve", host(), "file"
    )
    assert yaml.safe_load(made.text)["encryptionsalt"] == "v1:abc=:v1:def=:ghi=="
    assert made.text.startswith("# yaml-language-server") and "FILL" not in made.text
    assert existing(example, "Pulumi.homelab.yaml").text == ""
