"""From a reading and answers to settings (`homelab init`): what is decided, without a host."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml

from homelab.cards import resolving
from homelab.errors import Mistake
from homelab.facts.host import HostFacts
from homelab.init import cards as init_cards
from homelab.init import draft as init_draft
from homelab.init import new as init_new
from homelab.init import settings as init_settings
from homelab.init.ask import to_type
from homelab.init.cards import Use
from homelab.init.draft import Draft
from homelab.init.new import Stock
from homelab.judged.tree import judged
from homelab.settings import parse
from tests.conftest import PROJECT
from tests.rows import rows
from tests.unit import hosts
from tests.unit.test_containers import MOUNTS

GUESTS: dict[str, Any] = {
    "running": [103, 901],
    "configs": [
        hosts.conf("vm", 103, "name: Sandbox\nmachine: q35\nmemory: 16384\n"),
        hosts.conf("lxc", 901, "hostname: ai-lab\nunprivileged: 1\n"),
        hosts.conf("lxc", 902, "hostname: old\n"),
    ],
}
CLUSTER = {"node": "pve", "places": "pve/qemu-server/103.conf\nother/lxc/100.conf"}
ACCESS = {"address": "192.168.0.202", "ssh": {"hostKey": hosts.KEY, "privateKeyFile": "~/.ssh/id_ed25519"}}


def parse_use(text: str, facts: HostFacts, number: int = 0, **own: Any) -> Use:
    """An answer; `own`: what the settings have of the card already."""
    card = init_cards.cards(facts, {})[number]
    host = {**ACCESS, "gpus": {card.key: {**card.find, **own}}} if own else {}
    before = yaml.safe_dump({"config": {"homelab:hosts": {"pve": host}}}) if own else ""
    return init_draft.parse_use(text, card, Draft("pve", {} if own else ACCESS, facts, before))


def host(*more: dict[str, Any], **changes: Any) -> HostFacts:
    return hosts.desktop(*more, **{"guests": GUESTS, "cluster": CLUSTER, **changes})


def host_with(*configs: dict[str, Any], **changes: Any) -> HostFacts:
    """With these guests in the place of the usual ones."""
    return host(guests={**GUESTS, "configs": [*configs]}, **changes)


# -- cards ------------------------------------------------------------------------------------------------------------
def test_cards_have_the_names_that_people_know() -> None:
    found = init_cards.cards(host(), {})
    assert [(card.key, str(card)) for card in found] == [
        ("rtx5090", "RTX 5090 [10de:2b85] at 0000:01:00"),
        ("card", "graphics card [1002:164e] at 0000:0b:00"),
    ]
    assert found[0].find == {"match": "10de:2b85"}


def test_identical_cards_get_names_and_addresses_of_their_own() -> None:
    found = [card for card in init_cards.cards(host(*hosts.gpu("0000:03:00", 18)), {}) if card.is_nvidia]
    assert [card.key for card in found] == ["rtx5090", "rtx5090-2"]
    assert found[1].find == {"match": "10de:2b85", "address": "0000:03:00"}


def test_a_virtual_function_is_a_card_of_its_own_for_vms_alone() -> None:
    whole, sound = hosts.gpu("0000:03:00", 18)
    virtual = {**whole, "address": "0000:03:00.4", "physfn": "0000:03:00.0", "group": 19, "driver": ""}
    facts = host({**whole, "vfs": 1}, sound, virtual)
    [_, owner, function, _] = init_cards.cards(facts, {})
    assert (owner.place, function.place) == ("0000:03:00", "0000:03:00.4")
    assert function.find == {"address": "0000:03:00.4"}
    for card, possible in ((1, {"901", "host"}), (2, {"103"})):
        for text in ("103", "901", "host"):
            if text in possible:
                assert parse_use(text, facts, card).use
            else:
                with pytest.raises(Mistake):
                    parse_use(text, facts, card)
    # Nobody knows which of them all is meant.
    assert init_cards.suggested(facts, function) == "nobody"


@rows(
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


def test_what_a_person_has_to_accept_is_asked_and_nothing_else_opens_a_gate() -> None:
    assert parse_use("103", host()).more == {}
    screen = parse_use("103", host(), 1)
    assert screen.more == {"allowConsole": True}
    assert screen.refused is not None and "boot_vga" in screen.refused.found
    assert parse_use("103", host(), 1, allowConsole=True).more == {}  # the settings, or --set, have opened it
    for own in "lxc", "shared":  # what it was for until now
        assert parse_use("103", host(), 1, use=own).more == {"allowConsole": True}
    not_taken = [("901", {"reset": "flr"}, "expected no reset"), ("103,901", {}, "use: shared is for NVIDIA's")]
    for text, more, found in not_taken:
        with pytest.raises(Mistake, match=rf"card can't go to .*: .*{found}(.*\n)+.*correct --set"):
            parse_use(text, host(), 1, **more)
    mounting = hosts.conf("lxc", 901, "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n")
    used = host_with(GUESTS["configs"][0], mounting, nvidia_minors={"0000:01:00.0": 0})
    assert parse_use("103", used).more == {"allowContainers": [901]}
    assert init_cards.users(used, init_cards.cards(used, {})[0]) == ["container 901 (), running"]


def test_what_a_later_answer_may_change_keeps_no_card_from_being_judged() -> None:
    """A guest of `--set` that isn't given yet; another card of the settings, which isn't there any more."""
    screen = init_cards.cards(host(), {})[1]
    gone = yaml.safe_dump({"config": {"homelab:hosts": {"pve": {**ACCESS, "gpus": {"old": {"match": "10de:2204"}}}}}})
    for text, sets in (("", ["vms.later.machine=q35"]), (gone, [])):
        draft = Draft("pve", {} if text else ACCESS, host(), text, sets)
        assert init_draft.parse_use("103", screen, draft).more == {"allowConsole": True}


def of_first(*more: str) -> str:
    """Settings whose first card is a VM's; `more`: lines of the host."""
    first = ["gpus: {rtx5090: {match: '10de:2b85', use: vm}}", "ssh: {agent: true, hostKey: " + hosts.KEY + "}", *more]
    lines = [f"      {line}" for line in ("address: 192.0.2.1", *first)]
    vms = "  homelab:vms:\n    gaming: {host: pve, vmid: 103, gpus: [rtx5090]}\n"
    return "\n".join(["config:", "  homelab:hosts:", "    pve:", *lines, ""]) + vms


@pytest.mark.parametrize("nvidia", [[], ["nvidia: {}"]], ids=["driver loaded", "driver by the settings"])
def test_a_second_card_can_go_anywhere_while_a_vm_has_the_first_one(nvidia: list[str]) -> None:
    facts = hosts.one_in_vm()
    first, second, *_ = init_cards.cards(facts, {"0000:01:00": "rtx5090"})
    draft = Draft("pve", {}, facts, of_first(*nvidia), stack="p/s")
    uses = {answer: init_draft.parse_use(answer, second, draft).use for answer in ("901", "host", "103")}
    assert uses == {"901": "lxc", "host": "host", "103": "vm"}
    # Of the first one itself `up` refuses that, as before.
    with pytest.raises(Mistake, match="it is bound for VMs, and VM 103"):
        init_draft.parse_use("901", first, draft)


def test_a_card_that_no_answer_has_named_yet_leaves_the_settings_only_once_no_question_is_left() -> None:
    """The settings are new; the VM has its card from an earlier stack."""
    facts = hosts.one_in_vm()
    second = init_cards.cards(facts, {})[1]
    draft = Draft("pve", ACCESS, facts, "", stack="p/s")
    given = {second: init_draft.parse_use("901", second, draft)}
    wanted = draft.of_host(parse(init_settings.values_in(draft.written(given))))
    assert judged(facts, wanted).host.against == []
    (refused,) = judged(facts, replace(wanted, is_whole=True)).host.against
    assert "since no card of gpus is it" in refused.wanted


# -- choices ----------------------------------------------------------------------------------------------------------
def test_who_has_a_card_is_preselected_else_the_only_guest_that_could() -> None:
    [card, screen] = init_cards.cards(host(), {})
    assert init_cards.suggested(host(), card) == "103"
    assert init_cards.suggested(host(), card, {103}) == "nobody"  # it gets another one
    assert init_cards.suggested(host(), screen) == "nobody"
    drawn_on = host(framebuffers={"0000:01:00.0": ["BOOTFB"]})  # what the firmware doesn't mark
    assert init_cards.suggested(drawn_on, card) == "nobody"
    two = host_with(*GUESTS["configs"], hosts.conf("vm", 104, "name: b\nhostpci0: 0000:01:00,pcie=1\n"))
    assert init_cards.suggested(two, card) == "104"
    with_driver = host(nvidia_minors={"0000:01:00.0": 0})
    assert init_cards.suggested(with_driver, card) == "nobody"  # two containers: nobody knows which
    using = host_with(hosts.conf("lxc", 902, "dev0: /dev/nvidia0,mode=0666\n"), nvidia_minors={"0000:01:00.0": 0})
    assert init_cards.suggested(using, card) == "902"


def test_a_card_is_named_by_its_name_its_slot_or_its_id() -> None:
    card = init_cards.cards(host(), {})[0]
    assert card.names == ("rtx5090", "0000:01:00", "01:00", "10de:2b85")


@rows(
    ("text", "use"),
    [
        ("103", Use("vm", (103,))),
        ("901,902", Use("lxc", (), (901, 902))),
        ("901 103", Use("shared", (103,), (901,))),
        ("vm 103", Use("vm", (103,))),
        ("VM:103, ct 901 container:902", Use("shared", (103,), (901, 902))),
        ("Sandbox", Use("vm", (103,))),
        ("ai-lab,OLD, 901", Use("lxc", (), (901, 902))),
        ("host", Use("host")),
        ("vms", Use("vm")),
        ("nobody", Use()),
    ],
)
def test_what_a_card_is_for(text: str, use: Use) -> None:
    assert parse_use(text, host()) == use


@rows(
    ("text", "found"),
    [
        ("104", "104 can't have rtx5090; there are, by number, name or word"),
        ("", "nothing can't have"),
        ("901,", ""),
        ("901,host", "there are"),
        (",", "there are"),
        ("vm:901", "there are"),
        ("?", "103: VM 103 (Sandbox), running"),
        ("?", "901,902: these containers, together"),
        ("?", "103,901,902: in turn"),
    ],
)
def test_what_a_card_can_not_be_for_is_named(text: str, found: str) -> None:
    if not found:
        assert parse_use(text, host()).containers == (901,)
        return
    with pytest.raises(Mistake, match=re.escape(found)):
        parse_use(text, host())


def test_a_name_that_two_guests_have_is_none_of_them() -> None:
    with pytest.raises(Mistake, match="ai-lab can't have rtx5090"):
        parse_use("ai-lab", host_with(*GUESTS["configs"], hosts.conf("vm", 104, "name: AI-lab\n")))


LOCAL = {"storage": "local", "content": "iso,vztmpl,backup,import", "avail": 5}
TEMPLATE = "debian-13-standard_13.1-2_amd64.tar.zst"
STOCK = Stock(
    storages=[
        LOCAL,
        {"storage": "small", "content": "images", "avail": 1},
        {"storage": "local-lvm", "content": "rootdir,images", "avail": 3},
    ],
    bridges=[{"iface": "vmbr1"}, {"iface": "vmbr0", "gateway": "192.168.0.1"}],
    templates=[
        {"template": name, "location": f"http://download.proxmox.com/images/system/{name}", "sha512sum": "0" * 128}
        for name in ("debian-9-standard_9.7-1_amd64.tar.gz", TEMPLATE, "debian-13-standard_13.1-1_amd64.tar.zst")
    ],
    volumes=[
        *(f"local:iso/{name}.iso" for name in ("Fedora", "Win11", "virtio-win-0.1.285", "en-us_windows_11", "a,b")),
        "local:iso/darwin.iso",
        "local:vztmpl/alpine-3.22-default_1_amd64.tar.xz",
    ],
    next_id=100,
)


def test_new_guests_are_filled_in_from_what_the_host_has() -> None:
    found = init_new.offers(STOCK, hosts.KEY)
    assert [*found] == [
        "new-vm",
        "new-container",
        "new-vm:fedora.iso",
        "new-vm:darwin.iso",
        "new-container:alpine-3.22-default_1_amd64.tar.xz",
    ]
    vm, container, by_iso, _, alpine = found.values()
    assert vm.create["scsi0"] == "local-lvm:0,import-from=local:import/ubuntu-24.04-noble.qcow2"
    assert (vm.create["net0"], vm.create["sshkeys"]) == ("virtio,bridge=vmbr0", hosts.KEY)
    assert (by_iso.create["ide2"], by_iso.downloads) == ("local:iso/Fedora.iso,media=cdrom", {})
    [download] = container.downloads.values()
    assert container.create["ostemplate"] == f"local:vztmpl/{TEMPLATE}"
    assert download["url"] == f"https://download.proxmox.com/images/system/{TEMPLATE}"
    assert (container.create["ostype"], "ostype" in alpine.create, alpine.downloads) == ("debian", False, {})
    # Nobody could log in without a key; and where no storage takes disks, there are no guests.
    assert [*init_new.offers(STOCK, "")] == ["new-vm:fedora.iso", "new-vm:darwin.iso"]
    assert init_new.offers(replace(STOCK, storages=[LOCAL]), hosts.KEY) == {}
    old = replace(STOCK, storages=[{**LOCAL, "content": "iso"}, *STOCK.storages[1:]])
    assert "import-from=local:" in init_new.offers(old, hosts.KEY)["new-vm"].create["scsi0"]


def again_of(access: dict[str, Any]) -> str:
    """The settings of a host without cards."""
    return yaml.safe_dump({"config": {"homelab:hosts": {"pve": {**access, "gpus": {}}}}})


def test_a_new_guest_stands_in_the_settings_with_what_it_is_made_of() -> None:
    new = init_new.offers(STOCK, hosts.KEY)
    [card, screen] = init_cards.cards(host(), {})
    draft = Draft("pve", ACCESS, host(), "", offers=lambda: new)

    def written(**answers: Any) -> Any:
        uses = {one: init_draft.parse_use(answers[one.key], one, draft) for one in (card, screen) if one.key in answers}
        return config(draft.written(uses))

    made = written(rtx5090="new-vm")
    assert made["homelab:vms"]["ubuntu"]["gpus"] == ["rtx5090"]
    assert made["homelab:vms"]["ubuntu"]["create"] == new["new-vm"].create
    assert [*made["homelab:hosts"]["pve"]["downloads"]] == ["ubuntu-24.04-noble.qcow2"]
    assert "passthroughTest" not in made["homelab:hosts"]["pve"]["gpus"]["rtx5090"]
    assert written(rtx5090="vms")["homelab:hosts"]["pve"]["gpus"]["rtx5090"]["passthroughTest"] is True
    # What logs in to the host logs in to it, too; and it can be found.
    for way in ({"privateKeyFile": "~/.ssh/homelab_ed25519"}, {"agent": True}):
        access = {**ACCESS, "ssh": {"hostKey": hosts.KEY, **way}}
        given = {card: init_draft.parse_use("new-vm", card, draft)}
        for one in (replace(draft, login=access), replace(draft, login={}, text=again_of(access))):
            text = one.written(given)
            assert f"user: ubuntu, hostKey: ssh-ed25519 AAAA…, {init_settings.flow(way)[1:]}" in text
            assert "# address: 192.168.0.50 # as your router's leases name it" in text
    assert new["new-vm"].create["agent"] == 1
    both = written(rtx5090="new-container", card="host")
    assert both["homelab:containers"]["debian"]["nvidia"] == {}
    assert both["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    # Which of them can't be had yet, their list says, also after a mistake.
    for text, refused in (("?", ["host"]), ("new-cm", ["host", "new-vm"])):
        with pytest.raises(Mistake) as raised:
            init_draft.parse_use(text, card, draft, refused=refused)
        marked = [line.split(":")[0].strip() for line in str(raised.value).splitlines() if "not yet" in line]
        assert marked == [*refused[1:], "new-container", "new-container", "host"]
    assert "vms: no VM gets it yet" in str(raised.value)


def test_a_node_is_asked_what_new_guests_are_made_of_where_an_answer_wants_one() -> None:
    """A storage whose files can't be listed is in nobody's way who gives a card to a VM that is there."""

    def refused() -> dict[str, init_new.New]:
        raise AssertionError("the node was asked")

    draft = Draft("pve", ACCESS, host(), "", offers=refused)
    card = init_cards.cards(host(), {})[0]
    assert init_draft.parse_use("103", card, draft).vms == (103,)
    assert init_draft.parse_use("nobody", card, draft) == Use()
    with pytest.raises(AssertionError, match="the node was asked"):
        init_draft.parse_use("new-vm", card, draft)


def test_each_answer_is_a_new_guest_with_an_id_that_nobody_has() -> None:
    """Container 100 is on another node of the cluster, and VM 103 on this one; the settings have 104, not made yet."""
    new = init_new.offers(STOCK, hosts.KEY)
    [card, screen] = init_cards.cards(host(), {})
    other = {"host": "pve", "vmid": 104, "gpus": [], "create": {"scsi0": "local-lvm:8"}}
    before = f"{again_of(ACCESS)}  homelab:vms: {init_settings.flow({'ubuntu': other})}\n"
    draft = Draft("pve", {}, host(), before, ["vms.later.vmid=101", "vms.later.host=pve"], offers=lambda: new)
    first = {card: init_draft.parse_use("new-vm", card, draft)}
    both = {**first, screen: init_draft.parse_use("NEW-VM", screen, draft, given=first)}
    made = config(draft.written(both))["homelab:vms"]
    got = {name: (vm["vmid"], vm.get("gpus")) for name, vm in made.items()}
    assert got == {
        "ubuntu": (104, []),
        "later": (101, None),
        "ubuntu-2": (102, ["rtx5090"]),
        "ubuntu-3": (105, ["card"]),
    }
    # The same run again changes nothing.
    again = replace(draft, text=draft.written(first))
    assert again.written({card: init_draft.parse_use("new-vm", card, again)}) == again.text


def test_what_a_vm_cant_have_is_said_in_a_sentence_and_then_why_and_what_to_type() -> None:
    disk = hosts.device("0000:01:00.2", "144d:a80c", "010802", 16)
    with pytest.raises(Mistake) as raised:
        parse_use("103", host(disk))
    first, wanted, why, step = str(raised.value).splitlines()
    assert wanted.startswith("    wanted: ") and "rtx5090" in wanted
    assert first == (
        "rtx5090 can't go to VM 103: it shares its IOMMU group with 0000:01:00.2 NVMe disk [144d:a80c]; containers, or "
        "the host itself, can have it."
    )
    assert why.startswith("    why:    starting a VM with the card takes every device of the group")
    assert 'is named in --set "gpus.rtx5090.allowGroupMembers=[ADDRESS]"' in step
    assert parse_use("103", host(disk), allowGroupMembers=["0000:01:00.2"]).use == "vm"
    # What the plan says of the host and containers, counts.
    with pytest.raises(Mistake, match=r"NVMe disk \[144d:a80c\]\.\n"):
        card = init_cards.cards(host(disk), {})[0]
        init_draft.parse_use("103", card, Draft("pve", ACCESS, host(disk), ""), refused=["host"])


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("switch on Intel VT-d, and run `pulumi up` again", "switch on Intel VT-d, and run `homelab init` again"),
        (
            "accept it with gpus.rtx-5.allowConsole: true (so)",
            'accept it with --set "gpus.rtx-5.allowConsole=true" (so)',
        ),
        ("gpus.a.allowContainers: [901, 902]", '--set "gpus.a.allowContainers=[901, 902]"'),
        ("set gpus.a.use: vm, or lxc", "set gpus.a.use: vm, or lxc"),
    ],
)
def test_what_to_do_next_is_told_as_it_is_typed_here(text: str, here: str) -> None:
    assert to_type(text) == here


def test_a_guest_that_the_api_doesnt_speak_of_isnt_called_off() -> None:
    facts = host(guests={**GUESTS, "running": [], "unlisted": "timeout"})
    assert init_cards.guest(facts.guests.configs[0], facts) == "VM 103 (Sandbox), not known whether it runs"


def test_a_vm_with_windows_is_told_where_its_driver_and_its_display_come_from() -> None:
    windows = host_with(hosts.conf("vm", 103, "name: gaming\nmachine: q35\nostype: win11\n"))
    notes = [note for note in parse_use("103", windows).notes if "Windows" in note]
    assert notes == [
        "VM 103 has Windows, in which homelab installs nothing; its driver, its display and xVga: docs/cards.md"
    ]
    assert not any("Windows" in note for note in parse_use("103", host()).notes)


def test_of_vms_one_has_a_card_at_a_time() -> None:
    with pytest.raises(Mistake, match="One VM at a time"):
        parse_use("103,104", host_with(*GUESTS["configs"], hosts.conf("vm", 104, "name: b\n")))


def test_any_setting_can_be_given() -> None:
    def put(*settings: str) -> Any:
        return yaml.safe_load(init_settings.merged("", "config: {}\n", settings, "pve"))["config"]

    assert put("vms.sandbox.machine=q35") == {"homelab:vms": {"sandbox": {"machine": "q35"}}}
    allowed = {"homelab:hosts": {"pve": {"gpus": {"a": {"allowConsole": True}}}}}
    assert put("homelab:hosts.pve.gpus.a.allowConsole=true") == allowed
    assert put('hosts.pve.nvidia.driver="580"') == {"homelab:hosts": {"pve": {"nvidia": {"driver": "580"}}}}
    # As a refusal names it, without the host.
    assert put("gpus.a.allowConsole=true") == allowed
    assert put("iommu.allowUnsafeInterrupts=true")["homelab:hosts"]["pve"]
    # A value is read by itself, and a key is a text.
    for value in ("a: b", "- a", "{a: b}", "[1, true]", '"a\\nb"', "|\n a\n b\n", "a # b", "&x a"):
        assert put(f"vms.a.b={value}") == {"homelab:vms": {"a": {"b": yaml.safe_load(value)}}}
    for key in ("103", "true", "null", "~", "#a", "a:"):
        assert put(f"vms.{key}.a=1", f"vms.{key}.b=2") == {"homelab:vms": {key: {"a": 1, "b": 2}}}
    for wrong in ("vms", "=1", "vms..x=1", "vms.a.b=!x c", "vms.a.b=a: b: c", "vms.a.b={a: 1, a: 2}"):
        with pytest.raises(Mistake, match="--set"):
            put(wrong)


# -- the settings -------------------------------------------------------------------------------------------------------
def written(given: dict[int, str], text: str = "", facts: HostFacts | None = None, *sets: str) -> str:
    """The file of these answers, by the card's place in the list."""
    facts = facts or host()
    before = init_settings.values_in(text)
    configured = (
        {place: gpu for gpu, place in resolving.resolve(facts, parse(before).hosts["pve"].gpus)[0].items()}
        if before
        else {}
    )
    cards = init_cards.cards(facts, configured)
    draft = Draft("pve", {} if before else ACCESS, facts, text, sets)
    uses = {cards[number]: init_draft.parse_use(answer, cards[number], draft) for number, answer in given.items()}
    made = draft.written(uses)
    parse(init_settings.values_in(made))
    return made


def config(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)["config"]
    return found


def test_a_card_for_a_vm() -> None:
    made = written({0: "103"})
    found = config(made)
    assert found["homelab:hosts"]["pve"] == {**ACCESS, "gpus": {"rtx5090": {"match": "10de:2b85", "use": "vm"}}}
    assert found["homelab:vms"] == {"sandbox": {"host": "pve", "vmid": 103, "gpus": ["rtx5090"]}}
    assert "homelab:containers" not in found
    # What a person may want next stands there, and is right as it stands.
    switched = re.sub("^      # (address|ssh|nvidia):", r"      \1:", made, flags=re.MULTILINE)
    switched = switched.replace("ssh-ed25519 AAAA…", hosts.KEY)
    vm = parse(init_settings.values_in(switched)).vms["sandbox"]
    assert vm.nvidia is not None and vm.nvidia.driver == "580" and vm.nvidia.cuda


def test_nothing_is_proposed_over_what_a_containers_owner_mounts() -> None:
    for mount, proposed in (("", "      nvidia: {}"), ("\n" + MOUNTS, "      # nvidia: {}")):
        facts = host_with(hosts.conf("lxc", 901, f"hostname: ai-lab\nunprivileged: 1{mount}"))
        assert f"{proposed} #" in written({0: "901"}, facts=facts)


def test_a_host_says_its_node_and_its_cluster() -> None:
    """As far as the settings take the name."""
    for cluster, name, said in (("home", "pve", {"cluster": "home"}), ("9", "other", {"node": "pve"}), ("", "pve", {})):
        facts = replace(host(), cluster=replace(host().cluster, name=cluster))
        assert init_settings.place(facts, "pve", name) == said


@pytest.mark.parametrize("driver", ["vfio-pci", "nouveau"])
def test_a_card_that_ids_bind_by_hand_is_given_to_the_host_with_a_yes(driver: str) -> None:
    """Also where they had no effect so far: the next start may be the first with it."""
    facts = host(devices=hosts.driven(driver), vfio_files={"/etc/modprobe.d/vfio.conf": "10de:2b85,10de:22e8"})
    assert config(written({0: "host"}, facts=facts))["homelab:hosts"]["pve"]["takeOver"] is True
    assert "takeOver" not in config(written({0: "103"}, facts=facts))["homelab:hosts"]["pve"]


VMS_BY_HAND = {
    103: "name: Sandbox\nhostpci0: 0000:01:00.0,pcie=1,x-vga=1\nhostpci1: 0000:01:00.1,pcie=1",
    104: "name: gaming\nonboot: 1\nhostpci0: 01:00,pcie=1",
    105: "name: golden\ntemplate: 1\nonboot: 1\nhostpci0: 0000:01:00,pcie=1",
}


def with_card_by_hand(*vms: int, running: tuple[int, ...] = ()) -> HostFacts:
    configs = [hosts.conf("vm", number, VMS_BY_HAND[number]) for number in vms]
    return host(guests={"configs": configs, "running": running}, devices=hosts.driven("vfio-pci"))


def test_of_several_vms_that_have_a_card_by_hand_the_one_that_runs_is_meant() -> None:
    for running, preset in (((), 104), ((103,), 103), ((104,), 104)):
        facts = with_card_by_hand(103, 104, 105, running=running)
        assert init_cards.suggested(facts, init_cards.cards(facts, {})[0]) == str(preset)


def test_a_vm_is_judged_with_the_card_before_it_gets_it() -> None:
    """Its own line is taken over, and what another one runs with isn't taken from it."""
    facts = with_card_by_hand(103, 104, running=(103,))
    card = init_cards.cards(facts, {})[0]
    for vmid, found in ((103, []), (104, ["VM 103 (Sandbox) runs with it"])):
        tree = judged(facts, Draft("pve", ACCESS, facts, "").with_card(card, Use("vm", (vmid,))))
        refused = [error.found for error in tree.refusals]
        assert refused == ["machine: i440fx, the default", *found]


def test_a_template_takes_no_card_and_keeps_none_from_others() -> None:
    facts = with_card_by_hand(105)
    assert init_cards.suggested(facts, init_cards.cards(facts, {})[0]) == "vms"
    with pytest.raises(Mistake, match="105 can't have rtx5090"):
        parse_use("105", facts)


SANDBOX_LINES = "name: Sandbox\nmachine: q35\n"
TAKEN = [{"gpu": "rtx5090", "takeOver": True}]
GIVEN = "hostpci0: mapping=rtx5090,pcie=1,x-vga=1\n"
BEFORE = {"originals": {"hostpci0": "01:00,pcie=1,x-vga=1"}, "devices": {"0000:01:00.0": "10de:2b85"}}


def test_a_card_that_a_container_and_a_vm_have_in_turn_takes_a_driver() -> None:
    found = config(written({0: "103,901"}, facts=host(nvidia_minors={"0000:01:00.0": 0})))
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"]["use"] == "shared"
    assert found["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}
    assert found["homelab:vms"]["sandbox"]["gpus"] == found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]


@rows(
    ("case", "line", "more", "mapping", "expected"),
    [
        ("a raw line", "hostpci0: 0000:01:00,pcie=1,x-vga=1,romfile=a.rom\n", {}, None, TAKEN),
        ("a line for each function", "hostpci0: 01:00.0,pcie=1\nhostpci1: 01:00.1,pcie=1\n", {}, None, TAKEN),
        ("a mapping of its own", "hostpci0: mapping=gpu0,pcie=1,x-vga=1\n", {}, "gpu0", TAKEN),
        ("a mapping as this program would write it", "hostpci0: mapping=gpu0,pcie=1\n", {}, "gpu0", ["rtx5090"]),
        ("a stack that was lost", GIVEN, {"ledger": hosts.vm_note(103, GIVEN, "hostpci0", **BEFORE)}, None, TAKEN),
        (
            "what this program has given alone",
            GIVEN,
            {"ledger": hosts.vm_note(103, GIVEN, "hostpci0")},
            None,
            ["rtx5090"],
        ),
        ("another card", "hostpci0: 0000:05:00,pcie=1\n", {}, None, ["rtx5090"]),
    ],
)
def test_what_a_vm_has_by_hand_is_proposed_to_be_taken_over(
    case: str, line: str, more: dict[str, Any], mapping: str | None, expected: list[Any]
) -> None:
    configs = [hosts.conf("vm", 103, SANDBOX_LINES + line)]
    entry = "gpu0\n\tmap id=10de:2b85,iommugroup=14,node=pve,path=0000:01:00,subsystem-id=1043:89e3\n"
    facts = host(guests={**GUESTS, "configs": configs, "mappings": entry if mapping else ""}, **more)
    made = written({0: "103"}, "", facts)
    assert config(made)["homelab:vms"]["sandbox"]["gpus"] == expected
    assert config(made)["homelab:hosts"]["pve"]["gpus"]["rtx5090"].get("mapping") == mapping
    # Settings that have the card without that: the yes is added, and once.
    plain = made.replace("[{gpu: rtx5090, takeOver: true}]", "[rtx5090]")
    assert config(written({0: "103"}, plain, facts)) == config(made) == config(written({0: "103"}, made, facts))


def test_a_mapping_of_a_cards_sound_alone_is_not_taken_for_the_cards() -> None:
    """Of a slot that holds other functions, too, a mapping offers one."""
    entries = "\n".join(
        f"{name}\n\tmap id=1002:{ids},iommugroup=1,node=pve,path=0000:0b:00.{number}\n"
        for name, ids, number in (("sound", "1640", 1), ("graphics", "164e", 0))
    )
    lines = f"{SANDBOX_LINES}hostpci0: mapping=sound\nhostpci1: mapping=graphics,pcie=1\n"
    parts = (("1", "1002:1640", "040300"), ("2", "1022:1649", "108000"))
    more = [asdict(one) for one in hosts.desktop().devices if one.slot == "0000:0b:00"]
    more += [hosts.device(f"0000:0b:00.{number}", ids, code, 20 + int(number)) for number, ids, code in parts]
    guests = {**GUESTS, "configs": [hosts.conf("vm", 103, lines)], "mappings": entries}
    facts = hosts.desktop(devices=more, guests=guests)
    made = config(written({0: "103"}, "", facts))
    (card,) = made["homelab:hosts"]["pve"]["gpus"].values()
    assert card["mapping"] == "graphics" and "takeOver" not in str(made["homelab:vms"])


def test_a_card_for_containers() -> None:
    """In those that run, the driver's libraries, without which it can't be used."""
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    made = written({0: "901,902"}, "", facts)
    assert config(made)["homelab:containers"] == {
        "ai-lab": {"host": "pve", "ctid": 901, "gpus": ["rtx5090"], "nvidia": {}},
        "old": {"host": "pve", "ctid": 902, "gpus": ["rtx5090"]},
    }
    assert "nvidia" not in config(made)["homelab:hosts"]["pve"] and "580.105.08, which is loaded, and stays" in made
    assert config(written({0: "901"}))["homelab:hosts"]["pve"]["nvidia"] == {"driver": "580"}


def test_a_second_run_moves_a_card_and_loses_nothing() -> None:
    first = written({0: "103"})
    edited = first.replace("      vmid: 103", "      vmid: 103 # the first one\n      display: none").replace(
        "privateKeyFile: ~/.ssh/id_ed25519", "password: {secure: v1:x}"
    )
    facts = host(nvidia_minors={"0000:01:00.0": 0}, nvidia={"version": "580.105.08"})
    second = written({0: "901"}, edited, facts)
    found = config(second)
    assert found["homelab:vms"]["sandbox"] == {"host": "pve", "vmid": 103, "display": "none", "gpus": []}
    assert found["homelab:containers"]["ai-lab"]["gpus"] == ["rtx5090"]
    assert found["homelab:hosts"]["pve"]["gpus"]["rtx5090"] == {"match": "10de:2b85", "use": "lxc"}
    assert "# the first one" in second and "{secure: v1:x}" in second


# -- the file that is there ----------------------------------------------------------------------------------------------
def test_the_example_that_nobody_filled_in_counts_for_nothing_and_any_other_file_does() -> None:
    """But for what Pulumi has put into it: without its salt, the stack's secrets can't be read."""
    text = (PROJECT / "Pulumi.homelab.yaml").read_text(encoding="utf-8")
    assert init_settings.without_example(text) == ""
    salt = "encryptionsalt: v1:abc=:v1:def=:ghi==\n"
    assert init_settings.without_example(text + salt) == salt
    made = written({0: "103"}, init_settings.without_example(text + salt))
    assert yaml.safe_load(made)["encryptionsalt"] == "v1:abc=:v1:def=:ghi==" and "FILL" not in made
    filled = text.replace("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFILL+IN+WITH+ssh+keyscan+t+ed25519+ADDRESS0", hosts.KEY)
    assert init_settings.without_example(filled) == filled


def test_a_file_that_is_no_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(Mistake, match="The settings file: line 1 isn't YAML"):
        init_settings.values_in("config: [")
