"""Which of the driver's cards a container gets, and what stands against it; mistakes in its settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from homelab.container import plan as container_plan
from homelab.container.creation import configuration
from homelab.errors import HomelabError
from homelab.host import plan
from homelab.host.facts import HostFacts
from homelab.properties import same
from homelab.provider.new_container import NewContainerWork
from homelab.resources.new_container import NewContainer
from homelab.settings import Container, NewContainerSettings, parse
from homelab.shapes import ShutdownInputs
from homelab.vm.plan import UNFINISHED
from remote_scripts.shared.container_note import Cards
from tests.unit.hosts import KEY, container_note, desktop, device, settings

DRIVER = {"version": "580.105.08", "trouble": ["", ""]}
SECOND = [device("0000:03:00.0", "10de:2684", "030000", 18, driver="nvidia", parent="0000:00:01.1")]
GPUS = {"big": {"match": "10de:2b85", "use": "lxc"}, "small": {"match": "10de:2684", "use": "lxc"}}


def conf(kind: str, guest: int, lines: str) -> dict[str, Any]:
    return {"kind": kind, "id": guest, "lines": lines}


def shared(**changes: Any) -> HostFacts:
    """A host with two cards that its driver has: the one that comes first on the bus is number 1."""
    guests = {
        "running": [901], "mappings": "", "reservations": "",
        "configs": [conf("lxc", 901, "hostname: ai-lab"), conf("vm", 103, "name: Sandbox"), *changes.pop("configs", [])],
    }  # fmt: skip
    numbers = {"0000:01:00.0": 1, "0000:03:00.0": 0}
    found = desktop(*SECOND, **({"nvidia_minors": numbers, "nvidia": DRIVER, "guests": guests} | changes))
    return on_driver(found)


def on_driver(facts: HostFacts, slot: str = "0000:01:00", driver: str = "nvidia") -> HostFacts:
    devices = [replace(one, driver=driver) if one.address == f"{slot}.0" else one for one in facts.devices]
    return replace(facts, devices=devices)


def container(**changes: Any) -> Container:
    return Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0,1"} | changes)


def want(facts: HostFacts, gpus: dict[str, Any] | None = None) -> plan.Wanted:
    host = settings(GPUS if gpus is None else gpus)
    return plan.wanted(facts, host)


def planned(facts: HostFacts, one: Container, gpus: dict[str, Any] | None = None) -> list[int]:
    wanted = want(facts, gpus)
    found = container_plan.cards(facts, wanted, {}, "pve")
    minors, errors = container_plan.check("phoenix", one, facts, found, wanted)
    if errors:
        raise errors[0]
    return minors


@pytest.mark.parametrize(
    ("assignment", "minors"),
    [("0", [0]), ("0,1", [0, 1]), (" 1 , 0", [0, 1]), ("all", [0, 1]), ("ALL ", [0, 1]), ("none", []), (1, [1])],
)
def test_an_assignment_is_of_the_drivers_numbers(assignment: Any, minors: list[int]) -> None:
    assert planned(shared(), container(gpuAssignment=assignment)) == minors


@pytest.mark.parametrize(("names", "minors"), [(["big"], [1]), (["small"], [0]), (["small", "big"], [0, 1]), ([], [])])
def test_a_named_card_has_the_number_that_the_driver_gave_it(names: list[str], minors: list[int]) -> None:
    assert planned(shared(), container(gpuAssignment=None, gpus=names)) == minors


NO_MODULE = {**DRIVER, "version": "", "trouble": ["no module nvidia", "install it"]}


@pytest.mark.parametrize(
    ("facts", "changes", "said"),
    [
        (
            {},
            {"gpuAssignment": "2"},
            "0 (graphics card [10de:2684] at 0000:03:00), 1 (RTX 5090 [10de:2b85] at 0000:01:00)",
        ),
        ({}, {"ctid": 999}, "no such container on the host; there are: 901 (ai-lab)"),
        ({}, {"ctid": 103}, "103 is a virtual machine (Sandbox)"),
        ({"configs": [conf("lxc", 5000, "hostname: x\nlock: backup")]}, {"ctid": 5000}, "it is locked: backup"),
        ({"configs": [conf("vm", 7000, "name: g\nhostpci0: 01:00,pcie=1")]}, {}, "given to VM 7000 (g)"),
        ({"configs": [conf("vm", 7000, "name: g\nhostpci0: 0000:01:00.0")]}, {}, "given to VM 7000 (g)"),
        ({"nvidia": NO_MODULE}, {}, "no module nvidia"),
    ],
)
def test_what_stands_against_it_is_said(facts: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(HomelabError) as caught:
        planned(shared(**facts), container(**changes))
    assert said in caught.value.found


OWNERS = "".join(
    f"lxc.mount.entry: /dev/nvidia{number} dev/nvidia{number} none bind,create=file\n" for number in (0, 1)
)


def test_the_entry_of_a_container_that_was_removed_may_be_taken_out() -> None:
    with pytest.raises(HomelabError) as caught:
        planned(shared(), container(ctid=999))
    assert "take containers.phoenix out of the settings, if the container was removed" in caught.value.next


BOTH = Cards(minors=(0, 1), functions=("0000:01:00.0", "0000:03:00.0"))
GIVEN = "hostname: ai-lab\ndev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidia1,mode=0666"


def described(
    one: Container | None,
    *,
    lines: str = GIVEN,
    drift: tuple[str, ...] = (),
    runs: bool = True,
    ha: str = "",
    **note: Any,
) -> tuple[list[str], list[HomelabError]]:
    """The plan for a container that was given both cards, and is to be as `one`; None: it isn't in the settings."""
    note = {"cards": BOTH, **note}
    ledger = container_note(901, note.pop("cards"), "/dev/nvidia0,mode=0666", "/dev/nvidia1,mode=0666", **note)
    noted = {"id": 901, "drift": [*drift]}
    cluster = {"node": "pve", "name": "", "ha": {"resources": ha and f"ct: 901\n\tstate {ha}\n"}}
    guests = {
        "running": [901] * runs, "mappings": "", "reservations": "", "configs": [conf("lxc", 901, lines)],
    }  # fmt: skip
    facts = shared(guests=guests, ledger=ledger, containers=[noted], cluster=cluster, configs=[])
    wanted = {} if one is None else {"phoenix": one}
    text, errors = container_plan.describe(facts, want(facts), wanted, {}, "pve", stack="p/s")
    return [line.strip() for line in text.splitlines()], errors


RESTARTED = "it is shut down and started again"


@pytest.mark.parametrize(
    ("changes", "about", "said"),
    [
        ({}, {}, []),
        ({}, {"drift": ("dev1: /dev/nvidia1 is not there",)}, [RESTARTED]),
        ({"method": "mount-entry"}, {}, [RESTARTED]),
        ({}, {"drift": ("cut short",), "shut_down_after": "", "runs": False}, ["its options change", UNFINISHED]),
        ({}, {"runs": False, "cards": Cards(minors=(0,), functions=("0000:03:00.0",))}, ["its options change"]),
        ({"power": "stopped"}, {}, ["it is shut down"]),
        ({"power": "running"}, {"runs": False}, ["it is started"]),
        ({"gpuAssignment": "0"}, {}, ["- RTX 5090 [10de:2b85] at 0000:01:00", RESTARTED]),
        ({"gpuAssignment": "none"}, {"runs": False},
         ["- RTX 5090 [10de:2b85] at 0000:01:00", "- graphics card [10de:2684] at 0000:03:00", "its options change"]),
    ],
)  # fmt: skip
def test_the_plan_says_what_becomes_of_a_container(
    changes: dict[str, Any], about: dict[str, Any], said: list[str]
) -> None:
    lines, errors = described(container(**changes), **about)
    assert [line for line in lines[1:] if "vzdump" not in line] == said and errors == []


@pytest.mark.parametrize(
    ("waits", "others"),
    [
        ("tty: *", "tty"),
        ("delete: swap,!cmode\nmemory: *", "swap, cmode, memory"),
        ("dev0: /dev/nvidia0,mode=0666", ""),  # this program's own
        ("", ""),
    ],
)
def test_what_others_left_waiting_is_carried_out_by_a_containers_restart(waits: str, others: str) -> None:
    lines = f"{GIVEN}\n[pve:pending]\n{waits}\n[before]\ncores: *"
    said = f"its restart also carries out what others have left waiting for one: {others}"
    assert (said in described(container(gpuAssignment="0"), lines=lines)[0]) is bool(others)
    assert "carries out" not in str(described(container(), lines=lines)[0])
    assert "carries out" not in str(described(container(gpuAssignment="0"), lines=lines, runs=False)[0])


def test_one_that_has_its_cards_by_its_owners_lines_is_changed_in_nothing() -> None:
    lines = f"hostname: ai-lab\n{OWNERS}"
    facts = shared(configs=[conf("lxc", 5000, lines), conf("lxc", 5001, "hostname: x")])
    wanted = {"box": container(ctid=5000), "other": container(ctid=5001)}
    text, _ = container_plan.describe(facts, want(facts), wanted, {}, "pve")
    assert "vzdump 5000" not in text and "vzdump 5001" in text


def test_a_container_that_leaves_the_settings_is_told_what_becomes_of_it() -> None:
    raw = "lxc.cgroup2.devices.allow: c 195:0 rwm"
    values = {"dev0": ("/dev/nvidia0,mode=0666",), raw: ("",)}
    about: dict[str, Any] = {"values": values, "originals": {"dev0": "/dev/sda", raw: None}, "lines": f"{GIVEN}\n{raw}"}
    lines, errors = described(None, **about)
    assert (lines, errors) == (
        [
            f"container 901 (ai-lab), running: {RESTARTED}",
            "dev0: /dev/nvidia0,mode=0666 -> /dev/sda",
            f"{raw}: there -> not there",
            "containers.phoenix isn't in the settings any more: the container has back what it was before; one that was "
            "made here is removed, unless it is protected",
        ],
        [],
    )
    assert described(None, owner="p/other/phoenix") == ([], [])
    assert described(None, identity="AA:00:00:00:00:01") == ([], [])


@pytest.mark.parametrize(
    ("one", "state", "refused"),
    [
        (container(), "started", False),
        (container(gpuAssignment="0"), "started", True),
        (container(gpuAssignment="0"), "ignored", False),
        (container(power="stopped"), "stopped", True),
        (None, "started", True),
    ],
)
def test_a_container_under_ha_that_would_change_is_refused(one: Container | None, state: str, refused: bool) -> None:
    """`one` of None: it isn't in the settings any more."""
    errors = described(one, ha=state)[1]
    assert [error.found for error in errors] == [f"HA manages it ({state})"] * refused
    assert all("`ha-manager set ct:901 --state ignored`" in error.next for error in errors)


def test_another_stacks_container_is_refused() -> None:
    (error,) = described(container(), owner="p/other/box")[1]
    assert error.found == "it has its cards from the stack p/other, as containers.box"


def test_no_card_needs_no_driver() -> None:
    assert planned(shared(nvidia=NO_MODULE), container(gpuAssignment="none")) == []


def test_a_card_that_somebody_bound_to_vfio_pci_is_refused() -> None:
    facts = on_driver(shared(nvidia_minors={"0000:03:00.0": 0}), driver="vfio-pci")
    with pytest.raises(HomelabError, match="0000:01:00 is gpus.big, bound to vfio-pci"):
        planned(facts, container(gpuAssignment="1"))


def test_the_other_cards_number_is_that_after_the_reboot() -> None:
    gpus = {"small": {"match": "10de:2684"}, "big": {"match": "10de:2b85", "use": "lxc"}}
    facts = shared()
    assert planned(facts, container(gpuAssignment="0"), gpus) == [0]
    assert planned(facts, container(gpuAssignment=None, gpus=["big"]), gpus) == [0]
    with pytest.raises(HomelabError, match=r"0000:03:00 is gpus\.small, which is for a VM"):
        planned(facts, container(gpuAssignment="1"), gpus)


@pytest.mark.parametrize(
    ("minors", "driver_comes", "slots", "predicted"),
    [
        ({"0000:01:00.0": 1, "0000:03:00.0": 0}, True, {0: "0000:03:00", 1: "0000:01:00"}, False),
        ({"0000:03:00.0": 0}, False, {0: "0000:03:00"}, False),  # the driver has no number for the other one
        ({"0000:03:00.0": 0}, True, {0: "0000:03:00", 1: "0000:01:00"}, True),
        ({}, True, {0: "0000:01:00", 1: "0000:03:00"}, True),
        ({}, False, {}, False),
    ],
)
def test_a_driver_that_comes_numbers_the_cards_that_it_has_not_got_yet(
    minors: dict[str, int], driver_comes: bool, slots: dict[int, str], predicted: bool
) -> None:
    facts = shared(nvidia_minors=minors)
    found = container_plan.cards(facts, want(facts), {}, "pve", driver_comes=driver_comes)
    assert (found.slots, found.predicted) == (slots, predicted)
    assert ("at its next start" in found.text) is predicted


def test_a_driver_that_is_yet_to_come_has_no_trouble_now() -> None:
    facts = shared(nvidia=NO_MODULE, nvidia_minors={})
    found = container_plan.cards(facts, want(facts), {}, "pve", driver_comes=True)
    minors, errors = container_plan.check("phoenix", container(), facts, found, want(facts))
    assert (minors, errors) == ([0, 1], [])


def test_a_named_card_that_is_not_the_drivers_is_refused_and_another_makers_is_none_of_its() -> None:
    gpus = GPUS | {"igpu": {"match": "1002:164e", "use": "lxc"}}
    assert planned(shared(), container(gpuAssignment=None, gpus=["igpu", "big"]), gpus) == [1]
    with pytest.raises(HomelabError, match=r"gpus\.big .* isn't one of NVIDIA's, or its driver hasn't taken it"):
        planned(shared(nvidia_minors={"0000:03:00.0": 0}), container(gpuAssignment=None, gpus=["big"]))


def test_a_card_that_the_settings_dont_name_or_that_ids_bind_comes_back_with_takeover_alone() -> None:
    word = "quiet homelab.vfio=0000:01:00.0=10de:2b85"
    line = {"running": word, "configured": word, "others": "quiet", "generated": ""}
    bound = on_driver(shared(cmdline=line, nvidia_minors={}), driver="vfio-pci")
    assert "0000:01:00" in container_plan.cards(bound, want(bound, {}), {}, "pve").unavailable
    ids = {"vfio_ids": "10de:2b85", "vfio_files": {"/etc/modprobe.d/v.conf": "10de:2b85"}}
    facts = on_driver(shared(nvidia_minors={"0000:03:00.0": 0}, **ids), driver="vfio-pci")
    wanted = plan.wanted(facts, settings(GPUS, takeOver=True))
    assert container_plan.cards(facts, wanted, {}, "pve").slots == {0: "0000:03:00", 1: "0000:01:00"}
    # What something unknown has bound stays there.
    unknown = on_driver(shared(nvidia_minors={"0000:03:00.0": 0}), driver="vfio-pci")
    assert container_plan.cards(unknown, wanted, {}, "pve").slots == {0: "0000:03:00"}


@pytest.mark.parametrize(("named", "there"), [(False, {0: "0000:03:00", 1: "0000:01:00"}), (True, {0: "0000:03:00"})])
def test_a_bound_card_returns_to_the_driver_unless_a_vm_names_it(named: bool, there: dict[int, str]) -> None:
    """A card that a VM names is refused before (tests/unit/test_gates.py); nothing is planned with it all the same."""
    word = "quiet homelab.vfio=0000:01:00.0=10de:2b85"
    line = {"running": word, "configured": word, "others": "quiet", "generated": ""}
    numbers = {"0000:03:00.0": 0}
    free = on_driver(shared(cmdline=line, nvidia_minors=numbers), driver="vfio-pci")
    has = [conf("vm", 7000, "name: g\nhostpci0: 01:00,pcie=1")] if named else []
    facts = on_driver(shared(cmdline=line, nvidia_minors=numbers, configs=has), driver="vfio-pci")
    found = container_plan.cards(facts, want(free), {}, "pve")
    assert found.slots == there
    assert found.predicted is not named


HOST = {"address": "192.168.0.202", "ssh": {"hostKey": KEY, "agent": True}, "gpus": GPUS}


def loaded(vms: dict[str, Any] | None = None, **containers: dict[str, Any]) -> None:
    values = {"hosts": {"pve": HOST}, "containers": containers, "vms": vms or {}}
    parse(values)


DISK = {"storage": "local-lvm", "size": 8}
TEMPLATE = "local:vztmpl/debian.tar.zst"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpuAssignment": "0,0"}, "card 0 is there twice"),
        ({"gpuAssignment": "00,0"}, "card 0 is there twice"),
        ({"gpuAssignment": "0,"}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": ""}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": "-1"}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": "0;1"}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": "all,0"}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": "rtx5090"}, "expected numbers of /dev/nvidiaN"),
        ({"gpuAssignment": True}, "containers.phoenix.gpuAssignment"),
        ({"gpuAssignment": None}, "expected exactly one of gpuAssignment"),
        ({"gpus": ["big"]}, "expected exactly one of gpuAssignment"),
        ({"gpuAssignment": None, "gpus": ["big", "big"]}, "big is there twice"),
        ({"gpuAssignment": None, "gpus": ["huge"]}, "hosts.pve has no card huge; it has big, small"),
        ({"host": "other"}, "containers.phoenix.host: no such host; there are pve"),
        ({"ctid": 99}, "containers.phoenix.ctid"),
        ({"method": "bind"}, "found 'bind'"),
        ({"start": True, "power": "stopped"}, "contradict each other"),
        ({"create": {"template": "debian/12", "disk": DISK}}, "expected a template's volume"),
        ({"gpuAssignement": "0"}, "did you mean `gpuAssignment`?"),
    ],
)
def test_a_mistake_in_the_settings_is_named(changes: dict[str, Any], said: str) -> None:
    one = {"host": "pve", "ctid": 901, "gpuAssignment": "0,1"} | changes
    with pytest.raises(HomelabError) as caught:
        loaded(phoenix={key: value for key, value in one.items() if value is not None})
    assert said in str(caught.value)


def test_two_containers_may_share_a_card_but_not_an_id() -> None:
    one = {"host": "pve", "ctid": 901, "gpuAssignment": "0"}
    loaded(one=one, two=one | {"ctid": 902})
    with pytest.raises(HomelabError, match="have the same id 901"):
        loaded(one=one, two=one)


def test_a_new_containers_parameters() -> None:
    new = {
        "template": TEMPLATE, "disk": DISK, "cores": 4, "memory": 4096, "swap": 0, "bridge": "vmbr0",
        "ip": "192.168.0.50/24", "gateway": "192.168.0.1", "features": {"nesting": True, "keyctl": True}, "sshKeys": [KEY],
    }  # fmt: skip
    found = configuration("ai", NewContainerSettings.model_validate(new))
    assert found["net0"] == "name=eth0,bridge=vmbr0,ip=192.168.0.50/24,gw=192.168.0.1"
    assert found["features"] == "keyctl=1,nesting=1"
    assert (found["rootfs"], found["hostname"], found["unprivileged"]) == ("local-lvm:8", "ai", "1")
    assert found["ssh-public-keys"] == KEY


def test_another_address_of_a_made_container_leaves_the_rest_of_its_network_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Proxmox VE and people have added: of an OCI image's container, that the host sets the network up."""
    net = "name=eth0,bridge=vmbr0,gw=192.168.0.1,hwaddr=BC:24:11:AA:BB:CC,ip=192.168.0.50/24,host-managed=1,type=veth"
    changed: dict[str, Any] = {}

    class Node:
        get = staticmethod(lambda *_: {"digest": "1", "net0": net})
        put = staticmethod(lambda *_, **change: changed.update(change))

    def inputs(**about: Any) -> NewContainer.Inputs:
        new = NewContainerSettings.model_validate({"template": TEMPLATE, "disk": DISK, **about})
        return NewContainer.Inputs(
            host="pve", node="pve", container="ai", ctid=300, config=configuration("ai", new), protect=False, mark="m",
            shutdown=ShutdownInputs(timeout=5, otherwise="fail"),
        )  # fmt: skip

    work = NewContainerWork({})
    monkeypatch.setattr(work, "api", lambda _: Node)
    work.change(inputs(bridge="vmbr1"), inputs(ip="192.168.0.50/24", gateway="192.168.0.1"), [])
    assert same(
        "net0", changed["net0"], "name=eth0,bridge=vmbr1,ip=dhcp,hwaddr=BC:24:11:AA:BB:CC,host-managed=1,type=veth"
    )


FILMS = {"source": "/tank/films", "target": "/films"}


def test_folders_of_the_host_and_network_file_systems_of_a_new_container() -> None:
    new = {"template": TEMPLATE, "disk": DISK, "unprivileged": False, "features": {"mount": ["nfs", "cifs"]}}
    new |= {"mounts": [FILMS, {"source": "/mnt/a-b", "target": "/srv/b", "readOnly": True}]}
    found = configuration("ai", NewContainerSettings.model_validate(new))
    assert found["features"] == "mount=nfs;cifs,nesting=1"
    assert (found["mp0"], found["mp1"]) == ("/tank/films,mp=/films", "/mnt/a-b,mp=/srv/b,ro=1")


SYSTEM = [
    "/",
    "/etc",
    "/etc/pve",
    "/boot",
    "/dev/dri",
    "/proc",
    "/sys",
    "/root/.ssh",
    "/usr/bin",
    "/var",
    "/var/lib/vz/images",
    "/run/x",
    "/lib64",
]
NO_FOLDERS = [
    "films",
    "/tank/",
    "/tank//a",
    "/tank/../etc",
    "/tank/a,ro=0",
    "/./etc",
    "/tank/a\nmp1: /etc",
    "-v /etc",
    "/ etc",
]


@pytest.mark.parametrize("source", [*SYSTEM, *NO_FOLDERS])
def test_folders_of_the_hosts_system_and_what_is_no_folder_are_refused(source: str) -> None:
    with pytest.raises(ValidationError):
        NewContainerSettings.model_validate(
            {"template": TEMPLATE, "disk": DISK, "mounts": [{"source": source, "target": "/a"}]}
        )


@pytest.mark.parametrize(
    "source", ["/tank/films", "/srv", "/home/a", "/mnt/pve/nas/x", "/var/lib/vz/films", "/var/www/html"]
)
def test_folders_with_peoples_own_data_are_taken(source: str) -> None:
    made = {"template": TEMPLATE, "disk": DISK, "mounts": [{"source": source, "target": "/a"}]}
    assert NewContainerSettings.model_validate(made).mounts[0].source == source


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"mounts": [FILMS, {**FILMS, "source": "/tank/b"}]}, "/films is a target twice"),
        ({"features": {"mount": ["nfs"]}}, "an unprivileged container mounts no network file system"),
    ],
)
def test_what_does_not_fit_in_a_new_container_is_named(new: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        NewContainerSettings.model_validate({"template": TEMPLATE, "disk": DISK, **new})
