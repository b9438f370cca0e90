"""Which of the driver's cards a container gets, what stands against it, and that preview, refresh and doctor judge it once
(homelab/container/plan.py, judge_container); mistakes in its settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab.container import plan as container_plan
from homelab.container.work import _drift
from homelab.doctor.container import diagnose
from homelab.doctor.reading import Reading
from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.host import plan
from homelab.judged.tree import Tree
from homelab.settings import Container, Vm, parse
from homelab.vm.plan import UNFINISHED
from remote_scripts.notes.container_note import Cards
from tests.rows import rows
from tests.unit import test_doctor_stack as of_file
from tests.unit.hosts import NODES, cmdline, conf, container_note, desktop, device, device_nodes, settings, told, tree
from tests.unit.test_doctor import BARE, inside, reading
from tests.unit.test_moved_containers import probe

DRIVER = {"version": "580.105.08", "trouble": ["", ""]}
GPUS = {"big": {"match": "10de:2b85", "use": "lxc"}, "small": {"match": "10de:2684", "use": "lxc"}}


def shared(**changes: Any) -> HostFacts:
    """A host with two cards that its driver has: the one that comes first on the bus is number 1."""
    configs = [conf("lxc", 901, "hostname: ai-lab"), conf("vm", 103, "name: Sandbox"), *changes.pop("configs", [])]
    guests = {"running": [901], "configs": configs}
    numbers, nodes = {"0000:01:00.0": 1, "0000:03:00.0": 0}, device_nodes(NODES | {"nvidia1": "c3 1 666"})
    usual = {"nvidia_minors": numbers, "nvidia": DRIVER, "guests": guests, "nodes": nodes}
    second = device("0000:03:00.0", "10de:2684", "030000", 18, driver="nvidia", parent="0000:00:01.1")
    return on_driver(desktop(second, **(usual | changes)))


def on_driver(facts: HostFacts, driver: str = "nvidia") -> HostFacts:
    devices = [replace(one, driver=driver) if one.address == "0000:01:00.0" else one for one in facts.devices]
    return replace(facts, devices=devices)


MOUNTS = """\
lxc.mount.entry: /usr/bin/nvidia-smi usr/bin/nvidia-smi none bind,optional,create=file
lxc.mount.entry: /usr/lib/x86_64-linux-gnu/libcuda.so.1 usr/lib/x86_64-linux-gnu/libcuda.so.1 none bind,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /srv/media srv/media none bind
"""


def test_nothing_is_installed_over_files_of_the_hosts_that_its_owner_mounts() -> None:
    there = "/usr/bin/nvidia-smi, /usr/lib/x86_64-linux-gnu/libcuda.so.1"
    for lines, stack, is_refused in ((MOUNTS, {}, True), (MOUNTS, None, False), ("", {}, False)):
        facts = shared(guests={"running": [901], "configs": [conf("lxc", 901, f"hostname: ai-lab\n{lines}")]})
        wish = wish_of(container(nvidia=stack), facts, want(facts))
        assert [there in error.found for error in wish.refused] == [True] * is_refused


PHOENIX: dict[str, Any] = {"host": "pve", "ctid": 901, "gpuAssignment": "0,1"}


def container(**changes: Any) -> Container:
    return Container.model_validate(PHOENIX | changes)


def want(facts: HostFacts, gpus: dict[str, Any] | None = None) -> plan.Wanted:
    return plan.wanted(facts, settings(GPUS if gpus is None else gpus))


def cards_of(facts: HostFacts, wanted: plan.Wanted, *, driver_comes: bool = False) -> container_plan.DriverCards:
    return container_plan.cards(facts, wanted.gpus, {}, wanted.vfio_words, driver_comes=driver_comes)


def wish_of(
    one: Container, facts: HostFacts, wanted: plan.Wanted, *, driver_comes: bool = False
) -> container_plan.ContainerWish:
    found = cards_of(facts, wanted, driver_comes=driver_comes)
    return container_plan.wish_of("phoenix", one, facts, wanted.gpus, found, after_boot=driver_comes)


def planned(facts: HostFacts, one: Container, gpus: dict[str, Any] | None = None) -> list[int]:
    wanted = want(facts, gpus)
    wish = wish_of(one, facts, wanted)
    if errors := container_plan.judge_container(wish, facts).refusals:
        raise errors[0]
    return [*wish.cards.minors]


@rows(
    ("assignment", "minors"),
    [
        ("0", [0]),
        ("0,1", [0, 1]),
        (" 1 , 0", [0, 1]),
        ("all", [0, 1]),
        ("ALL ", [0, 1]),
        ("none", []),
        (1, [1]),
        ("00,0", [0]),
    ],
)
def test_an_assignment_is_of_the_drivers_numbers(assignment: Any, minors: list[int]) -> None:
    assert planned(shared(), container(gpuAssignment=assignment)) == minors


@pytest.mark.parametrize(("names", "minors"), [(["big"], [1]), (["small"], [0]), (["small", "big"], [0, 1]), ([], [])])
def test_a_named_card_has_the_number_that_the_driver_gave_it(names: list[str], minors: list[int]) -> None:
    assert planned(shared(), container(gpuAssignment=None, gpus=names)) == minors


NO_MODULE = {**DRIVER, "version": "", "trouble": ["no module nvidia", "install it"]}


@rows(
    ("facts", "changes", "said"),
    [
        (
            {},
            {"gpuAssignment": "2"},
            "0 (graphics card [10de:2684] at 0000:03:00), 1 (RTX 5090 [10de:2b85] at 0000:01:00)",
        ),
        ({}, {"ctid": 999}, "no such container on the host; there are: 901 (ai-lab)"),
        ({}, {"ctid": 103}, "103 is a VM (Sandbox)"),
        ({"configs": [conf("lxc", 5000, "hostname: x\nlock: backup")]}, {"ctid": 5000}, "it is locked (backup)"),
        ({"configs": [conf("vm", 7000, "name: g\nhostpci0: 01:00,pcie=1")]}, {}, "given to VM 7000 (g)"),
        ({"configs": [conf("vm", 7000, "name: g\nhostpci0: 0000:01:00.0")]}, {}, "given to VM 7000 (g)"),
        ({"nvidia": NO_MODULE}, {}, "no module nvidia"),
    ],
)
def test_what_stands_against_it_is_said(facts: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(HomelabError) as caught:
        planned(shared(**facts), container(**changes))
    assert said in caught.value.found
    removed = "take containers.phoenix out of the settings, if the container was removed"
    assert (removed in caught.value.next) is (changes.get("ctid") == 999)


BASE = "hostname: ai-lab"
BOTH = Cards(minors=(0, 1), functions=("0000:01:00.0", "0000:03:00.0"))
NAMES = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1"]
LINES = [f"dev{number}: /dev/{name},mode=0{'400' if 'cap1' in name else '666'}" for number, name in enumerate(NAMES)]
GIVEN = "\n".join([BASE, *LINES])
OWNERS = "\n".join(
    [
        BASE,
        *(f"lxc.mount.entry: /dev/{name} dev/{name} none bind,create=file" for name in NAMES[:4]),
        *(f"lxc.cgroup2.devices.allow: c {major}:* rwm" for major in (195, 508)),
    ]
)
RESTARTED = "it is shut down and started again"


def seen(
    lines: str = GIVEN, *, runs: bool = True, ha: str = "", given: bool = True, host: Any = None, **note: Any
) -> HostFacts:
    """A host with container 901, which was given both cards.

    :param host: what else it has.
    :param note: fields of what is noted of the container.
    """
    guests = {"running": [901] * runs, "configs": [conf("lxc", 901, lines)]}
    cluster = {"node": "pve", "ha": {"resources": ha and f"ct: 901\n\tstate {ha}\n"}}
    ledger = container_note(901, note.pop("cards", BOTH), *(line.partition(": ")[2] for line in LINES), **note)
    return shared(guests=guests, ledger=ledger if given else {}, cluster=cluster, configs=[], **(host or {}))


def preview(facts: HostFacts, **containers: Container) -> tuple[list[str], list[HomelabError]]:
    """The plan's lines, and what it refuses."""
    text, errors = told(facts, settings(GPUS), {}, containers, stack="p/s")
    return [line.strip() for line in text.splitlines()], errors


def judged(folder: Path, read: Reading, entry: dict[str, Any], **gpus: Any) -> Tree:
    """What is judged of this container by a stack's file, and of its host with further cards."""
    host = of_file.host() | {"gpus": GPUS | gpus}
    file = of_file.written(folder, {"hosts": {"pve": host}, "containers": {"phoenix": entry}})
    return of_file.judged_by(file, read, of_stack="p/s")


@pytest.mark.parametrize(
    ("about", "changes", "found", "step"),
    [
        ({}, {}, "", ""),
        ({"runs": False}, {}, "", ""),
        ({"ha": "started"}, {}, "", ""),
        ({"lines": OWNERS, "given": False}, {}, "", ""),
        ({"lines": OWNERS, "cards": Cards(minors=(0,))}, {"method": "mount-entry"}, "", ""),
        ({"lines": BASE, "given": False}, {}, "dev0: not there -> /dev/nvidia0; dev1: not", "`pulumi up --refresh`"),
        ({"lines": BASE, "runs": False}, {}, "dev0: not there -> /dev/nvidia0; dev1: not", "`pulumi up --refresh`"),
        ({"lines": GIVEN.replace(f"{LINES[1]}\n", "")}, {}, "dev1: not there -> /dev/nvidia1", "`pulumi up --refresh`"),
        ({"before": {"dev0": None}}, {}, UNFINISHED, "`pulumi up --refresh`"),
        ({"identity": "AA:00:00:00:00:01 local:901/disk.raw"}, {}, "container 901 isn't the container that was given its",
         "`pulumi up --refresh`"),
        ({"runs": False}, {"power": "running"}, "power: stopped -> running", "`pulumi up --refresh`"),
        ({}, {"power": "stopped"}, "power: running -> stopped", "`pulumi up --refresh`"),
        ({"before": {"dev0": None}, "ha": "started"}, {}, "HA manages it (started)", "`ha-manager set ct:901 --state ign"),
        ({"lines": BASE, "given": False, "ha": "started"}, {}, "HA manages it (started)", "`ha-manager set ct:901 --state"),
        ({"lines": f"{BASE}\nlock: backup", "given": False}, {}, "it is locked (backup)", "wait for the task; if there is"),
        ({"lines": f"{GIVEN}\nlock: backup"}, {}, "", ""),
        ({"owner": "p/other/box"}, {}, "it has its cards from the stack p/other, as containers.box", "take it out of the"),
        ({"lines": OWNERS.rpartition("\n")[0], "given": False}, {},
         "lxc.cgroup2.devices.allow: c 508:0 rwm: not there -> there", "`pulumi up --refresh`"),
        ({"host": {"nvidia_minors": {"0000:01:00.0": 1, "0000:03:00.0": 2}, "nodes": device_nodes({**NODES, "nvidia1": "c3 1 666", "nvidia2": "c3 2 666"})}, "runs": False},
         {"gpuAssignment": "all"}, "dev0: /dev/nvidia0,mode=0666 -> not there; dev6: not there -> /dev/nvidia2", "`pulumi up"),
        ({"host": {"nodes": device_nodes(dict.fromkeys(NAMES[:3], "c3 0 666"))}, "runs": False}, {},
         "not on the host now: /dev/nvidia-uvm", "`pulumi up --refresh`"),
        ({"lines": GIVEN.replace(LINES[0], "dev0: /dev/nvidia0"), "runs": False}, {}, "/dev/nvidia0 has mode 0660",
         "`pct set 901 --dev0 /dev/nvidia0,mode=0666`"),
    ],
    ids=[
        "given", "given, and off", "under HA, as it is", "its owner's lines", "others of its owner's lines", "never given",
        "all taken out", "one taken out", "cut short", "made again", "off", "on", "under HA",
        "under HA, and never given", "locked", "locked, as it is", "another stack's", "its owner's lines without a rule", "numbers moved",
        "a node is gone", "a line that its owner has changed",
    ],
)  # fmt: skip
def test_preview_refresh_and_doctor_say_the_same(
    tmp_path: Path, about: dict[str, Any], changes: dict[str, Any], found: str, step: str
) -> None:
    """With one cure, which no voice doubles: no restart where `up` makes it, no `pulumi up` where the preview refuses."""
    facts, is_new, power = seen(**about), not about.get("given", True), changes.get("power", "keep")
    lines, errors = preview(facts, phoenix=container(**changes))
    steps = [
        line
        for line in lines
        if re.match(r"dev\d+: |lxc\.|power: |the last run|not on the host|another stack|.*isn't the con", line)
    ]
    drift = _drift(facts, replace(probe("pve"), container="phoenix", power=power), "p/s")
    assert drift == steps or is_new, "before the first up there is nothing to refresh"
    inner = inside({**NODES, "nvidia1": "c3 1 666"}) if about.get("runs", True) else None
    read = reading(about.get("lines", GIVEN), inner, facts=facts)
    report = diagnose(read, 901, tree=judged(tmp_path, read, PHOENIX | changes))
    of_turn = {turn: [one.found for one in report.findings if one.turn.name == turn] for turn in ("UP", "REFUSED")}
    assert of_turn["UP"] == ["; ".join(steps)] * bool(steps)
    assert of_turn["REFUSED"] == [error.found for error in errors]
    assert found in "".join(one.found for one in report.findings) and report.well is (not found)
    assert [one.partition(step)[0] for one in report.next] == [""] * bool(step)
    # Without settings, by what was given; whose it is, isn't known then.
    if facts.container_note(901) and power == "keep" and "owner" not in about:
        assert [one.found for one in diagnose(read, 901).findings if one.turn.name == "UP"] == of_turn["UP"]


def test_one_that_is_gone_is_told_alike(tmp_path: Path) -> None:
    facts = seen()
    facts = replace(facts, guests=replace(facts.guests, configs=[]))
    (error,) = preview(facts, phoenix=container())[1]
    assert error.found == "no such container on the host; there are: none"
    assert _drift(facts, probe("pve")) == ["container 901 isn't there"]
    read = reading(facts=facts)
    read = replace(read, facts=facts, extra=replace(read.extra, containers=()))
    with pytest.raises(HomelabError) as raised:
        diagnose(read, 901, tree=judged(tmp_path, read, {"host": "pve", "ctid": 901, "gpus": ["big"]}))
    assert str(raised.value) == str(error)


def test_what_stands_against_any_change_of_its_host_is_the_cure_of_a_container_that_up_would_change(
    tmp_path: Path,
) -> None:
    for lines, steps in ((BASE, ["correct `match` or `address`"]), (GIVEN, [])):
        read = reading(lines, facts=seen(lines, runs=False))
        report = diagnose(read, 901, tree=judged(tmp_path, read, PHOENIX, gone={"match": "10de:1234", "use": "lxc"}))
        assert [step.partition(";")[0] for step in report.next] == steps


def test_while_a_shared_card_is_away_no_container_is_compared_with_the_settings(tmp_path: Path) -> None:
    """As a refresh does. What it lacks isn't to be given to it by hand then, either."""
    facts = seen(BASE, given=False)
    facts = replace(facts, handover=replace(facts.handover, away="gpus.rtx5090 is with VM 103"))
    read = reading(BASE, inside({}), facts=facts)
    report = diagnose(read, 901, tree=judged(tmp_path, read, PHOENIX))
    assert report.well and "not compared with the settings: gpus.rtx5090 is with VM 103" in report.notes


def test_a_container_that_has_a_card_in_turn_by_lines_of_its_own_is_named_before_its_vm_takes_it_down() -> None:
    host = settings({"big": {"match": "10de:2b85", "use": "shared"}}, nvidia={"driver": "580"})
    vm = Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["big"]})
    # The second one is another card's.
    own = [conf("lxc", 950, "hostname: media\ndev0: /dev/nvidia1"), conf("lxc", 951, "dev0: /dev/nvidia0")]
    listed = container(ctid=950, gpuAssignment=None, gpus=["big"])
    given = container_note(950, Cards(functions=("0000:01:00.0",)), "/dev/nvidia1", identity="")
    for facts, containers, is_told in (
        (shared(configs=own), {}, True),
        (shared(configs=own), {"media": listed}, False),
        # It has them from an earlier run, and loses them in this one.
        (shared(configs=own, ledger=given), {}, False),
    ):
        remarks = tree(facts, host, {"sandbox": vm}, containers).host.remarks
        said = [one for one in remarks if "lines of its own" in one]
        assert [one.startswith("gpus.big: container 950 (media) has it") for one in said] == [True] * is_told


def test_libraries_are_no_cure_of_a_container_that_the_preview_refuses(tmp_path: Path) -> None:
    facts = seen(BASE, given=False, ha="started")
    read = reading(BASE, inside({}).rpartition("library")[0], facts=facts, installed=BARE)
    report = diagnose(read, 901, tree=judged(tmp_path, read, PHOENIX | {"nvidia": {}}))
    assert len(report.findings) == 3 and [step.partition(" ")[0] for step in report.next] == ["`ha-manager"]


@rows(
    ("changes", "about", "said"),
    [
        ({}, {}, []),
        ({}, {"lines": GIVEN.replace(f"{LINES[1]}\n", "")}, [RESTARTED]),
        ({"method": "mount-entry"}, {}, [RESTARTED]),
        ({}, {"before": {"dev0": None}}, [RESTARTED, UNFINISHED]),
        ({}, {"lines": BASE, "runs": False}, ["its options change"]),
        ({"power": "stopped"}, {}, ["it is shut down", "power: running -> stopped"]),
        ({"power": "running"}, {"runs": False}, ["it is started", "power: stopped -> running"]),
        ({"gpuAssignment": "0"}, {}, ["- RTX 5090 [10de:2b85] at 0000:01:00", RESTARTED]),
        ({"gpuAssignment": "none"}, {"runs": False},
         ["- RTX 5090 [10de:2b85] at 0000:01:00", "- graphics card [10de:2684] at 0000:03:00", "its options change"]),
        # What its owner gives it, and what of that isn't enough.
        ({}, {"lines": OWNERS, "given": False}, []),
        ({}, {"lines": OWNERS, "cards": Cards(minors=(0,))}, []),
        ({}, {"lines": OWNERS.replace("508", "509"), "given": False}, [RESTARTED]),
        ({}, {"lines": OWNERS.replace("/dev/nvidiactl dev", "/dev/null dev"), "given": False}, [RESTARTED]),
        ({}, {"lines": "\n".join([BASE, *LINES[:3]]), "given": False}, [RESTARTED]),
        ({"gpuAssignment": "all"}, {"lines": BASE, "host": {"nodes": {}}, "given": False},
         [RESTARTED, "not on the host now: /dev/nvidia0, /dev/nvidia1, /dev/nvidiactl, /dev/nvidia-uvm"]),
        ({}, {"host": {"nodes": {}}}, ["not on the host now: /dev/nvidia0, /dev/nvidia1, /dev/nvidiactl, /dev/nvidia-uvm"]),
    ],
)  # fmt: skip
def test_the_plan_says_what_becomes_of_a_container(
    changes: dict[str, Any], about: dict[str, Any], said: list[str]
) -> None:
    lines, errors = preview(seen(**about), phoenix=container(**changes))
    steps = [line for line in lines if re.match(r"dev\d|lxc\.", line)]
    backup = ["to back it up first: `vzdump 901` on the host"] * bool(steps)
    assert [line for line in lines[1:] if line not in steps] == [*said, *backup] and errors == []


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
    said = f"this also carries out what others have left waiting for its next start: {others}"
    assert (said in preview(seen(lines), phoenix=container(gpuAssignment="0"))[0]) is bool(others)
    assert "carries out" not in str(preview(seen(lines), phoenix=container())[0])
    assert "carries out" not in str(preview(seen(lines, runs=False), phoenix=container(gpuAssignment="0"))[0])


def test_a_container_that_leaves_the_settings_is_told_what_becomes_of_it() -> None:
    raw = "lxc.cgroup2.devices.allow: c 195:0 rwm"
    values = {"dev0": ("/dev/nvidia0,mode=0666",), raw: ("",)}
    about: dict[str, Any] = {"values": values, "originals": {"dev0": "/dev/sda", raw: None}, "lines": f"{GIVEN}\n{raw}"}
    lines, errors = preview(seen(**about))
    assert (lines, errors) == (
        [
            f"container 901 (ai-lab), running: {RESTARTED}",
            "dev0: /dev/nvidia0,mode=0666 -> /dev/sda",
            f"{raw}: there -> not there",
            "containers.phoenix isn't in the settings any more: the container has back what it was before",
        ],
        [],
    )
    assert preview(seen(**about, owner="p/other/phoenix")) == ([], [])
    assert preview(seen(**about, identity="AA:00:00:00:00:01")) == ([], [])
    (error,) = preview(seen(**about, ha="started"))[1]
    assert error.found == "HA manages it (started)"


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


@rows(
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
    found = cards_of(facts, want(facts), driver_comes=driver_comes)
    assert (found.slots, found.predicted) == (slots, predicted)
    assert ("at its next start" in found.text) is predicted


def test_a_driver_that_is_yet_to_come_has_no_trouble_now() -> None:
    facts = shared(nvidia=NO_MODULE, nvidia_minors={})
    wish = wish_of(container(), facts, want(facts), driver_comes=True)
    assert (wish.cards.minors, wish.refused) == ((0, 1), [])


def test_a_named_card_that_is_not_the_drivers_is_refused_and_another_makers_is_none_of_its() -> None:
    gpus = GPUS | {"igpu": {"match": "1002:164e", "use": "lxc"}}
    drm = {"0000:0b:00.0": {"render": "renderD128"}}
    assert planned(shared(drm=drm), container(gpuAssignment=None, gpus=["igpu", "big"]), gpus) == [1]
    with pytest.raises(HomelabError, match=r"gpus\.big .* isn't one of NVIDIA's, or its driver hasn't taken it"):
        planned(shared(nvidia_minors={"0000:03:00.0": 0}), container(gpuAssignment=None, gpus=["big"]))


def test_a_card_that_the_settings_dont_name_or_that_ids_bind_comes_back_with_takeover_alone() -> None:
    word = "quiet homelab.vfio=0000:01:00.0=10de:2b85"
    bound = on_driver(shared(cmdline=cmdline(word, others="quiet"), nvidia_minors={}), driver="vfio-pci")
    assert "0000:01:00" in cards_of(bound, want(bound, {})).unavailable
    ids = {"vfio_files": {"/etc/modprobe.d/v.conf": "10de:2b85"}}
    facts = on_driver(shared(nvidia_minors={"0000:03:00.0": 0}, **ids), driver="vfio-pci")
    wanted = plan.wanted(facts, settings(GPUS, takeOver=True))
    assert cards_of(facts, wanted).slots == {0: "0000:03:00", 1: "0000:01:00"}
    # What something unknown has bound stays there.
    unknown = on_driver(shared(nvidia_minors={"0000:03:00.0": 0}), driver="vfio-pci")
    assert cards_of(unknown, wanted).slots == {0: "0000:03:00"}


@pytest.mark.parametrize(("named", "there"), [(False, {0: "0000:03:00", 1: "0000:01:00"}), (True, {0: "0000:03:00"})])
def test_a_bound_card_returns_to_the_driver_unless_a_vm_names_it(named: bool, there: dict[int, str]) -> None:
    """A card that a VM names is refused before (tests/unit/test_gates.py); nothing is planned with it all the same."""
    bound: dict[str, Any] = {"nvidia_minors": {"0000:03:00.0": 0}}
    bound["cmdline"] = cmdline("quiet homelab.vfio=0000:01:00.0=10de:2b85", others="quiet")
    free = on_driver(shared(**bound), driver="vfio-pci")
    has = [conf("vm", 7000, "name: g\nhostpci0: 01:00,pcie=1")] if named else []
    facts = on_driver(shared(**bound, configs=has), driver="vfio-pci")
    found = cards_of(facts, want(free))
    assert found.slots == there
    assert found.predicted is not named


def loaded(vms: dict[str, Any] | None = None, **containers: dict[str, Any]) -> None:
    parse({"hosts": {"pve": of_file.host() | {"gpus": GPUS}}, "containers": containers, "vms": vms or {}})


@rows(
    ("changes", "said"),
    [
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
        ({"create": {"ostemplat": "local:vztmpl/a"}}, "create.ostemplat: unknown key, did you mean ostemplate?"),
        ({"gpuAssignement": "0"}, "did you mean `gpuAssignment`?"),
    ],
)
def test_a_mistake_in_the_settings_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(HomelabError) as caught:
        loaded(phoenix={key: value for key, value in (PHOENIX | changes).items() if value is not None})
    assert said in str(caught.value)


def test_two_containers_may_share_a_card_but_not_an_id() -> None:
    loaded(one=PHOENIX, two=PHOENIX | {"ctid": 902})
    with pytest.raises(HomelabError, match="have the same id 901"):
        loaded(one=PHOENIX, two=PHOENIX)
