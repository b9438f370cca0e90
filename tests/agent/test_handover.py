"""What hands a card from containers to a VM and back, on a folder: who has a card open, which VM names it, what comes between.

Its states, events and refusals: test_handover_table.py. Killed at its calls, and programs that go wrong: test_handover_kills.py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence

import pytest

from remote_scripts.both import (
    container_cards,
    container_verification,
    nvidia_packages,
    nvidia_verification,
    start_guests,
)
from remote_scripts.both.handover import Wanted
from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import Context
from remote_scripts.cards import card_handover, card_users
from remote_scripts.cards.handed_over import SharedCard
from remote_scripts.layers import handover as layer
from remote_scripts.notes import handover, owed
from remote_scripts.notes.card import Card
from remote_scripts.notes.handover import away, read_record
from remote_scripts.notes.record import Record
from remote_scripts.pve import pmxcfs
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import to_plain
from remote_scripts.tools.processes import ScanError, processes_using
from remote_scripts.tools.system import System
from tests import sampling
from tests.agent import guest_kit, handover_kit
from tests.agent.cluster_kit import Clock
from tests.agent.handover_kit import AUDIO, BIG, CONTAINER, CT950, DEVICES, GPU, OTHER, SERVICE, START, STATE, VM, Host
from tests.agent.handover_kit import host as host  # fixtures
from tests.agent.handover_kit import lent as lent
from tests.agent.kit import Refused, failing, hangs, held


def says(host: Host, program: str, text: str, answer: Done | int | str | None) -> Callable[[], None]:
    """A call of a program with a text among its words, or of pvedaemon in what is asked, is answered so, until what is returned is called."""
    before = host.programs[program]
    host.programs[program] = lambda words, stdin: (
        answer if text in " ".join([*words, stdin.decode()]) else before(words, stdin)
    )
    return lambda: host.programs.update({program: before})


@pytest.mark.parametrize("only", [False, True])
def test_a_start_takes_the_card_and_a_stop_gives_it_back(host: Host, only: bool) -> None:
    with host.vm_locked():
        host.run(*START)
        assert host.with_the_vm() and host.exists("/sys/module/nvidia") is not only
        host.run(*handover_kit.STOP)
    assert host.state() == "RETURNING"
    host.run(*SERVICE)
    assert host.at_home(only=only) and host.state() == "" and "it is with the host again" in host.story()
    units = re.findall(r"--unit=homelab-handover-big-(\w+)", host.asked())
    assert len(units) == len({*units}) == 4, "two each way"
    assert "\n508 nvidia-uvm\n" in host.read("/proc/devices"), "vfio has taken the number of a module that was gone"


def test_what_is_noted_has_the_form_that_others_read(lent: Host) -> None:
    record = json.loads(lent.read(STATE))
    assert " ".join(record) == "state vm boot since why owed modules persistence units d3cold"
    assert (lent.root / STATE[1:]).stat().st_mode & 0o777 == 0o600
    values = {"state": "VM", "vm": "103", "boot": "boot", "persistence": "Enabled"}
    assert values.items() <= record.items()
    lent.rewrite(containers=["950"], known={"950": "AA:BB:CC:00:00:01 local-lvm:vm-950-disk-0"})
    assert to_plain(read_record(lent.system(), "big")) == record, "version 2.0 has noted its containers there"


# -- what can't be read ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [None, b"", b'{"state": "ODD"}', b"state=VM\nvm=103\nboot=boot\n"])
def test_a_state_that_cant_be_read_is_no_card_that_is_with_the_host(lent: Host, content: bytes | None) -> None:
    place = lent.root / STATE[1:]
    place.unlink()
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    before = lent.drivers()
    assert f"to read {STATE}" in lent.call(*START)
    lent.run(*SERVICE)
    assert lent.drivers() == before and f"left as it is: to read {STATE}: " in lent.story()
    with pytest.raises(Failure, match="a card may be on its way"):
        away(lent.system())


def test_a_list_of_containers_to_start_that_cant_be_read_costs_none_its_run(host: Host) -> None:
    host.write(owed.OWED, "{")
    before = host.everything()
    assert f"to read {owed.OWED}" in host.call(*START)
    assert host.everything() == before and host.at_home()


def test_a_list_of_containers_to_start_that_cant_be_read_refuses_no_start_that_shuts_none_down(host: Host) -> None:
    host.write(owed.OWED, "{")
    host.write(CT950, "stopped")
    host.run(*START)
    assert host.with_the_vm()


def test_a_container_whose_start_cant_be_noted_is_not_shut_down(host: Host) -> None:
    with failing(errno.ENOSPC, "create", at="/.owed.homelab-tmp"):
        assert "container 950 doesn't go off: No space left on device" in host.call(*START)
    assert host.at_home() and host.state() == "HELD" and "status/shutdown" not in host.asked()


@pytest.mark.parametrize("looks", [True, False])
def test_the_log_may_lose_a_containers_shutdown_once_the_host_has_seen_it(lent: Host, looks: bool) -> None:
    """Since a VM has had the card for a thousand tasks, or by a power cut, before that."""
    if looks:
        lent.alone()
        assert lent.owed() == {950: "gpus.big isn't back from a VM"}
    lent.write(f"{guest_kit.TASKS}/index", "")
    lent.go_on()
    assert lent.at_home() is looks and lent.owed() == ({} if looks else {950: owed.UNKNOWN})


def test_a_vms_configuration_that_cant_be_read_keeps_the_card(host: Host) -> None:
    (host.root / VM[1:]).unlink()
    (host.root / VM[1:]).mkdir()
    assert "to read /etc/pve/qemu-server/103.conf" in host.call(*START)
    assert host.at_home() and host.state() == ""


def test_a_card_that_cant_be_noted_as_on_its_way_is_not_unbound(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is on the disk before its drivers lose it."""
    real = handover.write_record

    def write_record(system: System, name: str, record: Record, **changes: object) -> None:
        if changes.get("state") == "DETACHED":
            raise OSError(28, "No space left on device")
        real(system, name, record, **changes)

    monkeypatch.setattr("remote_scripts.cards.handed_over.write_record", write_record)
    assert "its state can't be noted on the disk" in host.call(*START)
    assert host.at_home() and "step_claim" not in host.asked() and "step_bind" not in host.asked()


# -- dead cards ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", ["nothing", "another"])
def test_a_dead_card_is_kept_from_every_driver_until_it_answers(lent: Host, read: str) -> None:
    as_before = says(lent, "od", "", Done(1, b"") if read == "nothing" else " ff ff ff ff\n")
    for _ in range(2):
        lent.run(*SERVICE)
    assert (lent.state(), lent.driver(GPU), lent.read(CT950)) == ("DEAD", "vfio-pci", "stopped")
    assert "DEAD: its configuration space" in lent.call(*START) and lent.story().count("DEAD: ") == 1
    as_before()
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == ""


# -- who has it ------------------------------------------------------------------------------------------------------
def opens(host: Host, pid: int, number: int) -> None:
    """Its numbers are 1:3."""
    (host.root / f"proc/{pid}/task/{number}/fd/3").symlink_to("/dev/null")


def look(host: Host) -> list[str]:
    (host.root / "dev/control").unlink(missing_ok=True)
    (host.root / "dev/control").symlink_to("/dev/zero")
    return processes_using(host.system(), "/dev/control", {"1:3"}, SharedCard(host.system(), BIG).mapped_as())


MAPPED = "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0"


def test_who_has_it_open_is_named_with_its_container(host: Host) -> None:
    assert look(host) == []
    for pid in (42, 41):
        handover_kit.thread(host, pid, pid)
        opens(host, pid, pid)
    assert look(host) == ["ollama (PID 41 of container 950)", "ollama (PID 42 of container 950)"]
    (host.root / "proc/41/task/41/fd/4").symlink_to("nothing")  # closed meanwhile
    assert len(look(host)) == 2


def test_however_many_have_gone_meanwhile_the_others_are_seen(host: Host) -> None:
    for pid in (41, 42):
        handover_kit.thread(host, pid, pid)
    opens(host, 42, 42)
    for number in range(2000):
        (host.root / f"proc/41/task/41/fd/{number}").symlink_to("nothing")
    assert look(host) == ["ollama (PID 42 of container 950)"]


def test_memory_that_is_mapped_counts_without_a_descriptor(host: Host) -> None:
    handover_kit.thread(host, 43, 43, f"{MAPPED}\n")
    handover_kit.thread(host, 44, 44, f"{MAPPED}1\n")
    assert look(host) == ["ollama (PID 43 of container 950)"]


def test_a_process_whose_first_thread_has_ended_is_seen(host: Host) -> None:
    """The kernel then shows neither open files nor memory but under its other threads."""
    for pid in (51, 52):
        for number in (pid, pid + 100, pid + 200):
            handover_kit.thread(host, pid, number, f"{MAPPED}\n" if pid == 52 and number != pid else "")
    opens(host, 51, 151)
    assert [one.partition(" of")[0] for one in look(host)] == ["ollama (PID 51", "ollama (PID 52"]


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("stat", Done(1, b"")),
        ("stat", Done(TIMED_OUT, b"")),
        ("stat", Done(0, b"1:3\n")),
        ("stat", Done(126, b"")),
        ("grep", Done(TIMED_OUT, b"")),
        ("grep", Done(137, b"")),
    ],
)
def test_a_look_that_fails_says_so(host: Host, program: str, answer: Done) -> None:
    handover_kit.thread(host, 41, 41)
    says(host, program, "", answer)
    with pytest.raises(ScanError):
        look(host)


@pytest.mark.parametrize("why", ["Stale file handle", "Transport endpoint is not connected", "Input/output error"])
def test_a_storage_that_does_not_answer_hides_nobody(host: Host, why: str) -> None:
    handover_kit.thread(host, 41, 41)
    opens(host, 41, 41)
    real = host.programs["stat"]

    def stat(words: Sequence[str], stdin: bytes) -> Done:
        assert words[0] == "--cached=always"
        done = real(words, stdin)
        assert isinstance(done, Done)
        place = host.root / "proc/41/task/41/fd/9"
        return Done(1, done.output, f"stat: cannot statx '{place}': {why}\n".encode())

    host.programs["stat"] = stat
    assert look(host) == ["ollama (PID 41 of container 950)"]


# -- which VM names it -----------------------------------------------------------------------------------------------
MAPPINGS = """\
big
\tmap id=10de:2b85,node=pve,path=0000:01:00

other
\tmap id=10de:2684,node=pve,path=0000:02:00

behind
\tmap id=10de:2684,node=pve,path=10000:01:00.0

several
\tmap id=10de:2684,node=pve,path=0000:02:00.0;0000:01:00.0
"""


def test_of_a_mapping_the_lines_of_this_node_count(host: Host) -> None:
    lines = "shared\n\tmap id=10de:2b85,node=other,path=0000:01:00\n\tmap id=10de:2684,node=pve,path=0000:02:00\n"
    host.write("/etc/pve/mapping/pci.cfg", lines)
    host.write("/etc/pve/qemu-server/104.conf", "hostpci0: mapping=shared,pcie=1\n")
    for node, is_named in (("", True), ("pve", False), ("other", True)):  # or it isn't known which node this is
        (host.root / "etc/pve/local").unlink()
        (host.root / "etc/pve/local").symlink_to(f"nodes/{node}")
        assert card_users.names_card(SharedCard(host.system(), BIG), "104") is is_named


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("hostpci0: mapping=big,pcie=1", True),
        ("hostpci1: pcie=1,mapping=other", False),
        ("hostpci0: mapping=unknown", False),
        ("hostpci0: 02:00,pcie=1", False),
        ("hostpci0: 10000:01:00.0", False),  # behind Intel's Volume Management Device
        ("hostpci0: 0001:01:00", False),
        ("hostpci0: mapping=behind", False),
        ("hostpci0: mapping=several", True),
        ("#a\u2028[b]\x0c[c]\nhostpci0: 01:00", True),
        ("[a note of mine]\nhostpci0: 01:00", True),
        ("name: 01:00", False),
        ("[snapshot]\nhostpci0: 0000:01:00", False),
    ],
)
def test_a_vm_that_names_the_card_is_known(host: Host, option: str, named: bool) -> None:
    host.write("/etc/pve/mapping/pci.cfg", MAPPINGS)
    for vmid in (103, 104):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", f"{option}\n")
    stranger = host.call("hook", "104", "pre-start")
    assert ("VM 104 names gpus.big" in stranger) is named and bool(stranger) is named
    host.run(*START)
    assert (host.state() == "VM") is named


def test_a_card_that_is_on_vfio_pci_already_is_no_handover(host: Host) -> None:
    for address in (GPU, AUDIO):
        host.bind(address, "vfio-pci")
    host.run(*START)
    assert host.state() == "" and host.read(CT950) == "running"
    host.write(VM, f"lock: backup\n{host.read(VM)}")
    host.run(*START)
    assert host.state() == "", "nor is its backup one"


def test_a_card_does_not_sleep_too_deep_while_it_is_away(host: Host) -> None:
    attributes = [f"{DEVICES}/{one}/d3cold_allowed" for one in (GPU, AUDIO)]
    for path, value in zip(attributes, ("1\n", "0\n"), strict=True):
        host.write(path, value)
    host.run(*START)
    assert read_record(host.system(), "big").d3cold == (GPU,)
    assert [host.read(path) for path in attributes] == ["0\n"] * 2
    host.run(*SERVICE)
    assert [host.read(path) for path in attributes] == ["1\n", "0\n"], "what somebody has set stays"


# -- several VMs, several cards --------------------------------------------------------------------------------------
def test_of_several_vms_the_first_has_it_and_the_others_are_told(host: Host) -> None:
    host.cards(Card(name="big", functions=BIG.functions, vms=(103, 104)))
    host.write("/etc/pve/qemu-server/104.conf", host.read(VM))
    host.write("/state/qm/104", "stopped")
    host.run(*START)
    host.write(handover_kit.VM103, "running")
    other = ("hook", "104", "pre-start")
    assert "VM 103 has it since" in host.call(*other)
    assert host.with_the_vm() and read_record(host.system(), "big").vm == "103"
    # It has ended, and nobody has given the card back yet: the next one takes it, and the containers are started in the
    # end.
    host.write(handover_kit.VM103, "stopped")
    host.run(*other)
    assert host.with_the_vm() and (read_record(host.system(), "big").vm, host.owed()) == ("104", {950: ""})
    host.run(*SERVICE)
    assert host.at_home() and host.state() == "" and not host.owed()


@pytest.mark.parametrize(
    "words",
    [
        ("hook",),
        ("hook", "103"),
        ("hook", "103", "nothing"),
        ("hook", "x", "pre-start"),
        ("hook", "", "pre-start"),
        ("hook", "103; touch cut", "pre-start"),
        ("hook", "../103", "post-stop"),
        ("step_claim", "other"),
        (),
    ],
)
def test_a_call_with_garbage_does_nothing(host: Host, words: tuple[str, ...]) -> None:
    host.call(*words)
    assert host.at_home() and host.state() == ""


def test_of_two_cards_the_first_comes_back_where_the_second_is_not_to_be_had(host: Host) -> None:
    small = Card(name="small", functions={OTHER: "10de:2684"}, vms=(103,))
    host.write(VM, "name: gaming\nhostpci0: 0000:01:00\nhostpci1: 0000:02:00\n")
    host.write(f"{DEVICES}/{OTHER}/boot_vga", "1\n")
    for order in ((small, BIG), (BIG, small)):
        host.cards(*order)
        assert "this host's screen" in host.call(*START)
        assert host.at_home()
    assert host.state() == "HELD" and "VM 103 didn't get all of its cards" in host.read(STATE)


def test_a_card_that_other_configuration_has_bound_stays_there(host: Host) -> None:
    host.cards(Card(name="small", functions={OTHER: "10de:2684"}, vms=(103,)), BIG)
    host.write(VM, "name: gaming\nhostpci0: 0000:01:00\nhostpci1: 0000:02:00\n")
    host.write(f"{DEVICES}/{GPU}/boot_vga", "1\n")
    host.bind(OTHER, "vfio-pci")
    assert "this host's screen" in host.call(*START)
    assert host.driver(OTHER) == "vfio-pci"


def test_a_vm_doesnt_start_with_a_card_beside_its_own_that_others_have(host: Host) -> None:
    host.cards(BIG, Card(name="small", functions={OTHER: "10de:2684"}, vms=(104,)))
    host.write(VM, "name: gaming\nhostpci0: 0000:01:00\nhostpci1: 0000:02:00\n")
    assert "VM 103 names gpus.small" in host.call(*START)
    assert host.at_home() and host.state() == ""


def test_the_containers_of_a_vms_two_cards_are_started_when_both_are_back(host: Host) -> None:
    small, third = Card(name="small", functions={OTHER: "10de:2684"}, vms=(103,)), "0000:03:00.0"
    host.write(f"/proc/driver/nvidia/gpus/{OTHER}/information", "Device Minor: \t 1\n")
    host.write(f"{DEVICES}/{third}/vendor", "0x10de\n")
    host.write("/dev/nvidia1", "")
    host.bind(third, "nvidia")
    host.write(VM, "name: gaming\nhostpci0: 0000:01:00\nhostpci1: 0000:02:00\n")
    smi, pvedaemon = host.programs["nvidia-smi"], host.programs["pvedaemon"]
    host.programs["nvidia-smi"] = lambda words, stdin: (
        smi(words, stdin) if OTHER not in words else "Disabled\n" if host.driver(OTHER) == "nvidia" else 6
    )
    host.write(CONTAINER, f"{host.read(CONTAINER)}dev1: /dev/nvidia1\n")
    host.write("/etc/pve/lxc/951.conf", "hostname: chat\ndev0: /dev/nvidia0\ndev1: /dev/nvidia1\n")
    host.write("/state/pct/951", "running")
    seen: dict[str, list[list[str]]] = {"950": [], "951": []}

    def started(words: Sequence[str], request: bytes) -> Done | int | str | None:
        if start := re.match(rb"POST \S+/lxc/(\d+)/status/start ", request):
            seen[start[1].decode()].append(host.drivers())
        return pvedaemon(words, request)

    host.programs["pvedaemon"] = started
    for order in ((BIG, small), (small, BIG)):
        host.cards(*order)
        host.run(*START)
        assert host.drivers() == ["vfio-pci"] * 3
        host.run(*handover_kit.STOP)
        host.run(*SERVICE)
        assert host.at_home() and host.state() == "" and not host.exists(STATE.replace("big", "small"))
    # The same where a third one isn't to be had, and the VM doesn't start.
    host.write(f"{DEVICES}/{third}/device", "0x2684\n")
    shutil.copy(host.root / f"{DEVICES}/{OTHER}/config"[1:], host.root / f"{DEVICES}/{third}"[1:])
    host.write(f"{DEVICES}/{third}/boot_vga", "1\n")
    host.write(VM, f"{host.read(VM)}hostpci2: 0000:03:00\n")
    host.cards(BIG, small, Card(name="last", functions={third: "10de:2684"}, vms=(103,)))
    assert "this host's screen" in host.call(*START) and host.at_home()
    assert seen["950"] == seen["951"] == [["nvidia", "snd_hda_intel", "nvidia"]] * 3


def test_a_card_that_comes_back_has_all_modules_though_they_went_with_another_one(lent: Host) -> None:
    for name in ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"):
        (lent.root / "sys/module" / name).rmdir()
    lent.run(*SERVICE)
    loaded = re.findall(r"(?m)^modprobe (nvidia_?\w*)$", lent.asked())
    assert loaded == ["nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"] and lent.at_home()


def test_a_module_that_nobody_had_loaded_stays_so(host: Host) -> None:
    host.unbind(OTHER)
    (host.root / "sys/module/nvidia_drm").rmdir()
    host.run(*START)
    host.run(*SERVICE)
    assert host.at_home(only=True) and not host.exists("/sys/module/nvidia_drm")


@pytest.mark.parametrize(("of", "words"), [("VM", ""), ("STUCK", "gpus.big is STUCK after VM 103")])
def test_a_run_that_lets_a_vm_have_a_card_is_told_where_it_went_wrong(lent: Host, of: str, words: str) -> None:
    lent.rewrite(state=of)
    text = away(lent.system(), ["103"])
    assert words in text and bool(text) == bool(words)


SOFTWARE = Software(context=Context(name="it"), lock_seconds=0)


@pytest.mark.parametrize(
    ("verb", "name", "wanted"),
    [
        ("apply", "container_cards", container_cards.Wanted(ctid=950)),
        ("apply", "container_verification", container_verification.Wanted(ctid=950)),
        ("apply", "nvidia_packages", nvidia_packages.Wanted(target="host", software=SOFTWARE)),
        ("apply", "nvidia_verification", nvidia_verification.Wanted(seconds=60)),
        ("apply", "handover", Wanted(cards=(BIG,))),
        ("revert", "handover", Wanted()),
    ],
)
def test_what_needs_the_card_is_refused_while_it_is_away(lent: Host, verb: str, name: str, wanted: object) -> None:
    before = lent.everything()
    with pytest.raises(Refused, match="this host's shared cards with the host\nfound: +gpus.big is with VM 103"):
        lent.ask(verb, name, wanted)
    assert lent.everything() == before


def test_a_card_whose_state_cant_be_read_keeps_no_other_one_from_its_driver(lent: Host) -> None:
    lent.write("/var/lib/homelab/handover/small.state", "")
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == ""


# -- what comes between ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "conf", ["#a\0b\ndev0: /dev/nvidia0\n", "lxc.mount.entry: /dev/nvidia0 dev/gpu none bind,create=file\n"]
)
def test_a_container_that_has_the_card_beside_a_zero_byte_or_by_another_name_is_shut_down(
    host: Host, conf: str
) -> None:
    host.write(CONTAINER, conf)
    host.run(*START)
    assert host.with_the_vm() and "shutting container 950 down" in host.story()


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_container_that_still_goes_off_is_started_after_that(host: Host, is_noted: bool) -> None:
    host.write(STATE, handover_kit.noted("DRAINING", persistence="Enabled"))
    host.owe(950, is_noted=is_noted)
    tasks = host.root / guest_kit.TASKS[1:]
    (tasks / "index").rename(tasks / "active")
    host.run(*SERVICE)
    assert host.state() == "DRAINING", "it runs, and goes off: it would be taken for one that needs nothing"
    host.write(CT950, "stopped")
    (tasks / "active").rename(tasks / "index")
    host.run(*SERVICE)
    assert host.state() == "" and host.at_home() is is_noted
    assert host.owed() == ({} if is_noted else {950: owed.UNKNOWN}), "its owner may have switched it off"


def test_a_container_is_shut_down_in_its_own_time(host: Host) -> None:
    host.write(CONTAINER, "hostname: media\ndev0: /dev/nvidia0\nstartup: order=3,down=08\n")
    host.run(*START)
    assert "pvedaemon POST /lxc/950/status/shutdown forceStop=1 timeout=8\n" in host.asked()


def test_a_backup_in_stop_mode_of_a_vm_that_runs_keeps_the_card(host: Host) -> None:
    conf = host.read(VM)
    host.run(*START)
    host.write(VM, f"lock: backup\n{conf}")
    host.run(*handover_kit.STOP)
    host.run(*SERVICE)
    assert host.with_the_vm()
    host.run(*START)
    assert host.with_the_vm()
    host.write(VM, conf)
    host.run(*SERVICE)
    assert host.at_home()
    host.write(VM, f"lock: backup\n{conf}")
    assert "a backup of VM 103" in host.call(*START), "of one that was off"


def test_a_lock_that_a_backup_left_behind_is_named_with_what_cures_it(lent: Host) -> None:
    lent.write(VM, f"lock: backup\n{lent.read(VM)}")
    for _ in range(2):
        lent.run(*SERVICE)
    assert lent.with_the_vm() and lent.story().count("`qm unlock 103` gives the card back") == 1
    assert "qm unlock 103" in read_record(lent.system(), "big").why
    lent.write(VM, lent.read(VM).replace("lock: backup\n", ""))
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == ""


def test_a_driver_that_hangs_on_the_way_back_holds_nobody(lent: Host) -> None:
    lent.write("/hangs", "step_attach")
    lent.run(*SERVICE)
    assert lent.state() == "STUCK" and "giving it to NVIDIA's driver has not come to an end" in lent.read(STATE)
    lent.run(*SERVICE)
    assert lent.state() == "STUCK" and lent.read(CT950) == "stopped"
    # What it waited for has happened after all.
    for name in ("active", "hangs"):
        (lent.root / name).unlink()
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == "HELD"


def test_a_card_has_its_nodes_before_its_containers_start(lent: Host) -> None:
    """Modules that come back may have another major: the nodes of before would be nobody's."""
    (lent.root / "dev/nvidia0").unlink()
    real, there = lent.programs["pvedaemon"], []

    def pvedaemon(words: Sequence[str], request: bytes) -> Done | int | str | None:
        if b"/status/start " in request:
            there.append(lent.exists("/dev/nvidia0"))
        return real(words, request)

    lent.programs["pvedaemon"] = pvedaemon
    lent.run(*SERVICE)
    assert there == [True] and lent.at_home()


@pytest.mark.parametrize("of_systemd", ["at work", "silent"])
def test_a_vm_that_runs_for_days_is_not_stuck(lent: Host, of_systemd: str) -> None:
    lent.rewrite(since=1)
    lent.write(handover_kit.VM103, "running")
    as_before: Callable[[], None] = lambda: None  # noqa: E731
    if of_systemd == "silent":
        as_before = says(lent, "systemctl", "is-active", 1)
    else:
        lent.write("/active", "homelab-handover-big-step_bind.service\n")
    lent.run(*SERVICE)
    assert lent.with_the_vm()
    as_before()
    lent.write("/active", "")
    lent.write(handover_kit.VM103, "stopped")
    lent.run(*SERVICE)
    assert lent.at_home()


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("said", ["it has ended", "nothing"])
def test_a_step_of_which_systemd_does_not_say_in_time_what_came_of_it_is_no_reason_for_a_reboot(
    host: Host, step: int, said: str
) -> None:
    """124 of what starts a unit says that it didn't answer. A unit of which nothing is said may be at work, until systemd
    says that it isn't.
    """
    units: list[str] = []
    run_real, ask_real = host.programs["systemd-run"], host.programs["systemctl"]

    def systemd_run(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        (unit,) = (word for word in words if word.startswith("--unit="))
        units.extend({unit} - {*units})
        return TIMED_OUT if units.index(unit) == step else run_real(words, stdin)

    def systemctl(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        return 1 if len(units) > step and said == "nothing" and "is-active" in words else ask_real(words, stdin)

    host.programs |= {"systemd-run": systemd_run, "systemctl": systemctl}
    host.call(*START)
    host.run(*SERVICE)
    assert len(units) > step and (host.state() != "STUCK" or said == "nothing")
    host.programs |= {"systemd-run": run_real, "systemctl": ask_real}
    host.run(*SERVICE)
    assert host.at_home() and host.state() in ("", "HELD")


@pytest.mark.parametrize(("answer", "times"), [(TIMED_OUT, 2), (1, 2)])
def test_a_card_is_not_whole_before_its_last_step_is_done(host: Host, answer: int, times: int) -> None:
    host.unbind(OTHER)
    host.run(*START)
    real, left = host.programs["systemd-run"], ["step_attach"] * times
    host.programs["systemd-run"] = lambda words, stdin: (
        answer if {*words} & {*left} and left.pop() else real(words, stdin)
    )
    for _ in range(3):
        host.run(*SERVICE)
    assert host.at_home(only=True) and host.state() == ""


def test_a_step_that_goes_on_after_whoever_began_it_has_two_minutes(lent: Host) -> None:
    lent.rewrite(since=handover_kit.now(), state="RETURNING")
    lent.write("/active", "homelab-handover-big-step_release.service\n")
    lent.run(*SERVICE)
    assert lent.state() == "RETURNING"
    assert "RETURNING: a step of it is still at work" in lent.call(*START)
    for since in (1, handover_kit.now() + 7200):  # by then the clock has been set back
        lent.rewrite(since=since, state="RETURNING")
        lent.run(*SERVICE)
        assert lent.state() == "STUCK" and "a step on its way has not come to an end" in lent.read(STATE)
    lent.write("/active", "")
    lent.run(*SERVICE)
    assert lent.at_home()


def test_who_comes_between_the_look_and_the_unbinding_is_seen(host: Host) -> None:
    host.write("/late/maps", f"{MAPPED}\n")
    (host.root / "late/task").mkdir()
    (host.root / "late/task/43").symlink_to("..")
    assert "in use by ? (PID 43)" in host.call(*START)
    assert host.at_home() and host.state() == "HELD"


@pytest.mark.parametrize(
    ("group", "is_begun"),
    [("", False), ("/lxc/950/ns", True), ("/system.slice/nvidia-persistenced.service", True), ("/lxc/951/ns", False)],
)
def test_who_keeps_the_card_costs_no_container_its_run(host: Host, group: str, is_begun: bool) -> None:
    """Whom the handover ends itself is no reason against it."""
    handover_kit.thread(host, 43, 43, f"{MAPPED}\n", group)
    host.write("/proc/43/maps", f"{MAPPED}\n")
    assert "in use by ollama (PID 43" in host.call(*START)
    assert ("status/shutdown" in host.asked()) is is_begun and host.at_home()


@pytest.mark.parametrize(
    "lines",
    [
        "lxc.include: /etc/own/gpu.conf",
        "dev0: /dev/big",
        "lxc.mount.entry: / host none rbind,create=dir",
        "lxc.mount.entry: /srv/nodes/nvidia0 dev/nvidia0 none bind,create=file",
        "unprivileged: 0\nlxc.cgroup2.devices.allow: c 195:* rwm",
    ],
)
def test_a_container_that_has_it_by_what_isnt_read_keeps_it_and_none_is_shut_down(host: Host, lines: str) -> None:
    (host.root / "dev/big").symlink_to("nvidia0")
    host.write("/etc/own/gpu.conf", "lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,create=file\n")
    host.write("/etc/pve/lxc/951.conf", f"{lines}\n")
    host.write("/state/pct/951", "running")
    handover_kit.thread(host, 43, 43, f"{MAPPED}\n", "/lxc/951/ns")
    assert "in use by ollama (PID 43 of container 951)" in host.call(*START)
    assert "status/shutdown" not in host.asked() and host.at_home()


def test_a_step_that_systemd_calls_done_while_it_is_at_work_isnt_done(host: Host) -> None:
    """As `systemd-run --wait` does when systemd starts anew (daemon-reexec)."""
    real = host.programs["systemd-run"]

    def systemd_run(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        if "step_bind" not in words:
            return real(words, stdin)
        unit = next(word.partition("=")[2] for word in words if word.startswith("--unit="))
        host.write("/active", f"{unit}.service\n")
        return 0

    host.programs["systemd-run"] = systemd_run
    assert "moving it to vfio-pci has not come to an end" in host.call(*START)
    assert host.state() == "STUCK" and host.read(CT950) == "stopped" and not host.two_users()


@pytest.mark.parametrize("happens", ["somebody has it", "the look fails"])
def test_sound_that_somebody_has_open_when_the_modules_are_gone_is_not_unbound(host: Host, happens: str) -> None:
    """Its numbers are here those of /dev/null, which can be opened."""
    host.unbind(OTHER)
    place = f"{DEVICES}/{AUDIO}/sound/card1/controlC1"
    host.write(f"{place}/dev", "1:3\n")
    host.write(f"{place}/uevent", "DEVNAME=snd/controlC1\n")
    (host.root / "dev/snd").mkdir()
    (host.root / "dev/snd/controlC1").symlink_to("/dev/null")
    real = host.programs["rmmod"]

    def rmmod(words: Sequence[str], stdin: bytes) -> Done | int | str | None:
        if [*words] == ["nvidia"]:
            if happens == "the look fails":
                host.fails("stat --cached")
            else:
                handover_kit.thread(host, 40960, 40960)
                opens(host, 40960, 40960)
        return real(words, stdin)

    host.programs["rmmod"] = rmmod
    said = "in use by ollama (PID 40960" if happens == "somebody has it" else "it isn't known who has it"
    assert said in host.call(*START)
    assert host.at_home(only=True) and "step_bind big" not in host.asked()


def test_who_can_not_be_asked_has_not_ended(lent: Host) -> None:
    says(lent, "qm", "status", 1)
    place = lent.root / "etc/pve/qemu-server"
    place.rename(lent.root / "unmounted")
    lent.run(*SERVICE)
    assert lent.with_the_vm(), "/etc/pve isn't mounted"
    place.mkdir()
    lent.run(*SERVICE)
    assert lent.at_home(), "the VM is gone"


def test_a_vm_of_which_nobody_knows_whether_it_runs_is_not_taken_for_one_that_does(lent: Host) -> None:
    says(lent, "qm", "status", 1)
    assert "it isn't known whether VM 103 runs (`qm status 103`)" in lent.call(*START)
    assert lent.with_the_vm()


def test_what_qm_warns_of_before_its_answer_keeps_no_card(lent: Host) -> None:
    says(lent, "qm", "status", "a warning\nstatus: stopped\n")
    lent.run(*SERVICE)
    assert lent.at_home()


@pytest.mark.parametrize("another", [False, True], ids=["the card was taken out of it", "another one has its id"])
def test_a_vm_that_runs_without_the_card_keeps_it_from_nobody(lent: Host, another: bool) -> None:
    """Its end was not told to the hook, such as where a step of a run had this host."""
    lent.write(VM, "name: gaming\n")
    if not another:
        lent.run(*START)
    lent.write(handover_kit.VM103, "running")
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == ""


def test_a_vm_that_names_no_card_any_more_waits_for_nobody(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "START_SECONDS", 0.2)
    host.write(VM, "name: gaming\n")
    with held(host):
        host.run(*START)
    assert host.at_home()


def test_a_vm_whose_mapping_is_another_cards_by_now_keeps_what_it_has_open(
    lent: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent.write(VM, "name: gaming\nhostpci0: 0000:05:00.0\n")
    lent.write(handover_kit.VM103, "running")
    lent.write("/dev/vfio/7", "")
    (lent.root / DEVICES[1:] / GPU / "iommu_group").symlink_to("../7")
    monkeypatch.setattr(card_handover, "processes_using", lambda *_: ["kvm (PID 7)"])
    for _ in range(2):
        lent.run(*SERVICE)
    assert lent.with_the_vm() and lent.story().count("kvm (PID 7) still has it") == 1


def test_a_card_is_not_dead_because_the_disk_is_full(lent: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_record(*_arguments: object, **_changes: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(handover, "write_record", write_record)
        lent.fails("systemd-run step_release")
        lent.run(*SERVICE)
    assert lent.driver(GPU) == "vfio-pci"
    lent.fails()
    lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == ""


def test_a_card_that_can_not_be_let_go_of_its_drain_is_not_called_whole_and_lets_clients_in_before_its_containers_start(
    lent: Host,
) -> None:
    for call_, said in ((f"nvidia-smi drain -p {GPU} -m 0", ""), ("nvidia-smi pci.bus_id", "nvidia-smi")):
        lent.fails(call_)
        lent.run(*SERVICE)
        assert (lent.state(), lent.read(CT950)) == ("HELD", "stopped") and said in lent.read(STATE)
        assert said or lent.read("/drain") == "1\n"
        lent.write("/drain", "1\n")
        lent.fails()
        lent.run(*SERVICE)
        assert lent.at_home() and lent.state() == ""
        lent.run(*START)


def test_a_driver_that_answers_late_gets_its_settings_back_without_a_container_too(host: Host) -> None:
    host.write(CT950, "stopped")
    host.run(*START)
    host.write("/ails", "")
    host.run(*SERVICE)
    assert (host.state(), host.read("/persistence")) == ("HELD", "Disabled\n")
    (host.root / "ails").unlink()
    host.run(*SERVICE)
    assert (host.state(), host.read("/persistence"), host.read("/drain")) == ("", "Enabled\n", "0\n")
    assert host.read(CT950) == "stopped"


def test_what_a_command_says_is_told_as_text(host: Host) -> None:
    says(host, "nvidia-smi", "-m 1", Done(9, b"\x1b[31mno\0t here\x1b[0m\n"))
    host.run(*START)
    assert "it can't be drained, and goes without that: not here\n" in host.story()


# -- a start by hand while an `up` is at work ------------------------------------------------------------------------
def test_a_start_by_hand_waits_for_the_end_of_an_up(host: Host) -> None:
    with host.up_at_work("anna on desk"):
        said = host.call(*START)
        assert "is at work: anna on desk" in said and "when that has ended" in said
        assert host.at_home() and host.state() == "" and "doesn't get it" in host.story()
        conf = host.read(VM)
        host.write(VM, "name: gaming\n")
        host.run(*START)  # a start without the card is nobody's business
        host.write(VM, conf)
    with host.up_at_work("anna on desk", "103 ben\n104 anna on desk\n"):
        assert host.call(*START)
    with host.up_at_work("anna on desk", "103 anna on desk\n"):
        host.run(*START)
    assert host.with_the_vm()


def test_a_start_during_an_up_is_told_so_and_waits_for_none_of_its_steps(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "START_SECONDS", 0)
    with host.up_at_work("anna"), held(host):
        said = host.call(*START)
    assert "is at work: anna" in said and "for too long" not in said


def test_a_run_that_began_after_the_first_look_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for a run and the lock a start may have waited for long."""
    real = layer._get_host
    begun: list[object] = []

    def get_host(system: object, seconds: float) -> str:
        run_of = host.up_at_work("anna")
        run_of.__enter__()
        begun.append(run_of)
        return real(system, seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(layer, "_get_host", get_host)
    assert "is at work: anna" in host.call(*START)
    assert begun and host.at_home() and host.state() == "" and "shutdown" not in host.asked()


def test_the_timers_service_waits_for_the_end_of_an_up(lent: Host) -> None:
    with lent.up_at_work("anna"):
        lent.run(*SERVICE)
        assert lent.with_the_vm(), "the card"
        lent.rewrite(state="HELD", since=handover_kit.now())
        lent.run(*SERVICE)
        assert lent.read(CT950) == "stopped", "containers that are to be started again"
        lent.rewrite(state="VM")
    with lent.up_at_work("anna", "103 anna\n"):
        lent.run(*SERVICE)
    assert lent.at_home() and lent.state() == "", "a start of its own that has failed is undone"


def test_a_vm_that_has_its_card_starts_again_during_an_up(lent: Host) -> None:
    with lent.up_at_work("anna"):
        lent.run(*START)
    assert lent.with_the_vm() and "VM 103 keeps it" in lent.story()


def test_a_vm_that_had_the_card_before_waits_for_the_end_of_an_up_too(lent: Host) -> None:
    lent.fails("nvidia-smi pci.bus_id")
    lent.run(*SERVICE)
    assert lent.state() == "HELD" and lent.drivers()[0] == "nvidia"
    with lent.up_at_work("anna"):
        assert "is at work: anna" in lent.call(*START)
    assert lent.drivers()[0] == "nvidia"


def test_a_start_is_told_that_something_has_the_host_for_long(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "START_SECONDS", 0)
    with held(host):
        said = host.call(*START)
    assert "for too long" in said and "start VM 103 again when that has ended" in said
    assert host.at_home()


def test_a_backup_of_a_vm_that_is_off_waits_for_nobody(host: Host) -> None:
    """While somebody has the host's lock. The story has it."""
    host.write("/var/lib/homelab/handover/.keep", "")
    host.write(VM, f"lock: backup\n{host.read(VM)}")
    before = host.everything()
    with held(host):
        assert "a backup of VM 103, which was off" in host.call(*START)
    assert host.everything() == before


@pytest.mark.parametrize("by", ["its lock", "HA"])
def test_a_start_asks_for_no_lock_and_no_ha(host: Host, by: str) -> None:
    """Proxmox VE has looked at the lock itself, and HA may be who starts it."""
    if by == "HA":
        host.write("/etc/pve/ha/resources.cfg", "vm: 103\n\tstate started\n")
    else:
        host.write(VM, f"lock: create\n{host.read(VM)}")
    host.run(*START)
    assert host.with_the_vm()


# -- containers that come back ---------------------------------------------------------------------------------------
def owe(host: Host, ctid: int, why: owed.Why, node: str = "/dev/nvidia0") -> None:
    """A container of the card, or of another one, is off for a change of its own, or a restart of its host."""
    conf = f"hostname: chat\nlxc.mount.entry: {node} {node[1:]} none bind,optional,create=file\n"
    host.write(f"/etc/pve/lxc/{ctid}.conf", conf)
    host.write(f"/state/pct/{ctid}", "stopped")
    name, boot = f"container {ctid} (chat)", "before" if why == "restart" else "boot"
    shutdowns = (guest_kit.task(host, "vzshutdown", ctid, handover_kit.now()),) if why == "change" else ()
    debt = owed.Debt(program="pct", guest=ctid, name=name, identity="", why=why, boot=boot, known=(), ours=shutdowns)
    owed.put(host.working_system(), debt)


@pytest.mark.parametrize("why", ["change", "restart"])
def test_a_container_of_a_card_that_is_away_waits_for_it_whatever_it_is_owed_a_start_for(
    lent: Host, why: owed.Why
) -> None:
    """One of another card doesn't: its number is that of a card that the driver has."""
    lent.write(f"/proc/driver/nvidia/gpus/{OTHER}/information", "Device Minor: \t 1\n")
    owe(lent, 951, why)
    owe(lent, 952, why, "/dev/nvidia1")
    for _ in range(3):
        lent.alone()
    assert lent.started() == ["952"]
    assert lent.owed() == dict.fromkeys((950, 951), "gpus.big isn't back from a VM")
    lent.go_on()
    assert lent.at_home() and lent.started() == ["952", "950", "951"] and not lent.owed()


def test_a_list_of_cards_that_cant_be_read_keeps_no_container_off_that_has_none(lent: Host) -> None:
    owe(lent, 951, "restart")
    owe(lent, 952, "restart", "/dev/zero")
    lent.write(handover.CARDS, "[")
    lent.alone()
    assert lent.started() == ["952"]
    assert [*lent.owed()] == [950, 951] and lent.owed()[951].startswith(f"{handover.CARDS}: ")


def test_a_container_isnt_started_into_a_handover_of_its_card(host: Host) -> None:
    """Between the look at who has the card and the note that it is on its way."""
    host.write(f"/proc/driver/nvidia/gpus/{OTHER}/information", "Device Minor: \t 1\n")
    owe(host, 951, "restart")
    owe(host, 952, "restart", "/dev/nvidia1")
    host.working_system().work.need_folder()
    with (host.root / "run/homelab/handing").open("w") as handing:
        fcntl.flock(handing, fcntl.LOCK_EX)
        host.alone()
        assert host.started() == ["952"]
    host.alone()
    assert host.started() == ["952", "951"] and not host.owed()


def test_an_up_restarts_a_container_while_a_vm_that_it_has_started_goes_off(lent: Host) -> None:
    """Its card is on its way back, by a process of the host's: not before that has it the container is started."""
    owe(lent, 951, "change")
    with lent.up_at_work("anna", "103 anna\n"):
        lent.run(*handover_kit.STOP)
        assert lent.state() == "RETURNING"
        said = lent.ask("apply", "start_guests", start_guests.Wanted())
        assert not said["started"] and len(said["off"]) == 2 and not lent.started()
        lent.run(*SERVICE)
        assert lent.at_home() and lent.started() == ["950"]
        said = lent.ask("apply", "start_guests", start_guests.Wanted())
        assert said == {"started": ["container 951 (chat)"], "off": []}


@pytest.mark.parametrize("number", range(4))
def test_however_long_a_vm_has_the_card_all_its_containers_run_again(
    lent: Host, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn: it may have it for weeks, with locks, without a quorum. No wait is a try."""
    random, moments = sampling.drawn(f"weeks {number}"), handover_kit.Moments()
    monkeypatch.setattr("remote_scripts.guests.starts.time", moments)
    lent.write(handover_kit.VM103, "running")
    owe(lent, 951, "restart")
    owe(lent, 952, "change")
    confs = {ctid: lent.read(f"/etc/pve/lxc/{ctid}.conf") for ctid in (950, 951, 952)}
    for _ in range(12):
        moments.passed += random.randrange(3 * 86400)
        for ctid, conf in confs.items():
            lent.write(f"/etc/pve/lxc/{ctid}.conf", random.choice(["", "lock: backup\n"]) + conf)
        lent.write("/no-quorum", "")
        if random.random() < 0.5:
            (lent.root / "no-quorum").unlink()
        lent.run(*SERVICE)
        lent.alone()
    assert not lent.started() and [*lent.owed()] == [950, 951, 952]
    for ctid, conf in confs.items():
        lent.write(f"/etc/pve/lxc/{ctid}.conf", conf)
    (lent.root / "no-quorum").unlink(missing_ok=True)
    lent.write(handover_kit.VM103, "stopped")
    lent.go_on()
    assert lent.at_home() and sorted(lent.started()) == ["950", "951", "952"] and not lent.owed()


def test_a_container_that_could_not_be_started_is_not_forgotten(lent: Host) -> None:
    """The card is with the host all the same, and a VM may have it again."""
    lent.starts_fail(950)
    lent.run(*SERVICE)
    assert lent.state() == "" and lent.owed() == {950: "start failed: no such bridge"}
    said = "container 950 (media) was switched off by homelab, and isn't started yet: start failed"
    assert lent.story().count(said) == 1
    lent.run(*START)
    lent.alone()
    assert lent.with_the_vm() and lent.owed()[950] == "gpus.big isn't back from a VM"
    lent.starts_fail()
    lent.go_on()
    assert lent.at_home() and lent.state() == "" and not lent.owed()


def test_a_container_whose_lock_outlives_half_an_hour_is_started_when_it_ends(lent: Host) -> None:
    """Such as a backup of 40 minutes."""
    conf = lent.read(CONTAINER)
    lent.write(CONTAINER, f"lock: backup\n{conf}")
    for _ in range(20):
        lent.go_on()
    assert lent.owed() == {950: "it is locked, backup (once nothing works on it: `pct unlock 950`)"}
    assert lent.state() == "" and not lent.started() and lent.read(CT950) == "stopped"
    lent.write(CONTAINER, conf)
    lent.go_on()
    assert lent.at_home() and not lent.owed()


@pytest.mark.parametrize("meanwhile", ["the VM has the card", "its start fails"])
def test_what_its_owner_has_started_and_stopped_again_stays_off(lent: Host, meanwhile: str) -> None:
    """Each as the service comes by: without the card, while the VM has it, or since a start that came to nothing."""
    lent.write(handover_kit.VM103, "running")
    if meanwhile == "its start fails":
        lent.write(handover_kit.VM103, "stopped")
        lent.starts_fail(950)
        lent.go_on()
        assert lent.owed()
        lent.starts_fail()
    for kind, power in (("vzstart", "running"), ("vzstop", "stopped")):
        guest_kit.task(lent, kind, 950, handover_kit.now(), "anna@pam")
        lent.write(CT950, power)
        lent.run(*SERVICE)
    tries = lent.started()
    lent.write(handover_kit.VM103, "stopped")
    lent.run(*handover_kit.STOP)
    lent.go_on()
    assert lent.state() == "" and lent.drivers()[0] == "nvidia" and not lent.owed()
    assert lent.read(CT950) == "stopped" and lent.started() == tries


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (VM, "to read /etc/pve/qemu-server/103.conf"),
        (CONTAINER, "the configuration of container 950 can't be read"),
        ("/etc/pve/ha/resources.cfg", "is under HA"),
    ],
)
def test_a_file_system_of_proxmox_ve_that_hangs_keeps_the_card(
    host: Host, path: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that waits for ever would have this host for ever."""
    monkeypatch.setattr("remote_scripts.tools.time_limit.SECONDS", 0.2)
    place = host.root / path[1:]
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    assert words in host.call(*START)
    assert host.at_home() and "shutdown" not in host.asked()


def test_a_list_of_containers_that_hangs_keeps_the_card(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs(monkeypatch, host.root / pmxcfs.PVE_LXC[1:])
    assert "the containers of this host can't be listed" in host.call(*START)
    assert host.at_home()


@pytest.mark.parametrize(
    ("change", "is_same"),
    [(("01\n", "02\n"), False), (None, False), (("rootfs", "net1: name=eth1,hwaddr=AA:BB:CC:00:00:02\nrootfs"), True)],
    ids=["another one has its id", "it was moved away", "it got a network card"],
)
def test_a_container_that_isnt_there_any_more_is_owed_nothing_and_another_of_its_id_isnt_started(
    lent: Host, change: tuple[str, str] | None, is_same: bool
) -> None:
    lent.write(CONTAINER, lent.read(CONTAINER).replace(*(change or ("", ""))))
    if change is None:
        (lent.root / CONTAINER[1:]).unlink()
    lent.run(*SERVICE)
    assert (lent.at_home(), lent.started()) == (is_same, ["950"] * is_same) and lent.state() == "" and not lent.owed()


@pytest.mark.parametrize("request_", ["", "/lxc/950/status/current"])
def test_an_api_that_does_not_answer_keeps_no_card_and_is_no_container_that_runs(
    lent: Host, clock: Clock, request_: str
) -> None:
    as_before = says(lent, "pvedaemon", request_, "")
    lent.run(*SERVICE)
    assert lent.state() == "" and lent.owed() == {950: "no answer"}
    as_before()
    lent.go_on()
    assert lent.at_home() and lent.state() == "" and not lent.owed()


@pytest.mark.parametrize("ran", [True, False])
def test_lines_of_ours_follow_the_cards_number_also_where_no_container_ran(host: Host, ran: bool) -> None:
    before = "running" if ran else "stopped"
    host.write(CT950, before)
    host.run(*START)
    assert host.with_the_vm() and [*host.owed()] == [950] * ran
    host.write(f"/kept/{GPU}/information", "Device Minor: \t 1\n")
    host.write("/usr/local/sbin/homelab-card-nodes", "", 0o755)

    def follows(words: Sequence[str], _stdin: bytes) -> None:
        assert words[-2:] == (f"{host.root}/usr/local/sbin/homelab-card-nodes", "follow_containers")
        assert host.read(CT950) == "stopped"
        host.write(CONTAINER, host.read(CONTAINER).replace("nvidia0", "nvidia1"))

    host.programs["/usr/bin/python3"] = follows
    host.run(*SERVICE)
    assert host.state() == "" and "nvidia1" in host.read(CONTAINER) and host.read(CT950) == before


def test_one_that_is_owed_a_start_and_runs_again_without_the_card_keeps_running(host: Host) -> None:
    """Somebody has started it, and taken the card out of it."""
    host.write("/etc/pve/lxc/951.conf", "hostname: chat\n")
    host.write("/state/pct/951", "running")
    host.owe(951)
    host.run(*START)
    assert host.with_the_vm() and host.read("/state/pct/951") == "running"
    host.go_on()
    assert host.at_home() and host.read("/state/pct/951") == "running" and host.started() == ["950"] and not host.owed()


@pytest.mark.parametrize(("about", "refused"), [("", True), ("\tstate started\n", True), ("\tstate ignored\n", False)])
def test_a_container_that_ha_ignores_is_nobodys_but_ours(host: Host, about: str, refused: bool) -> None:
    host.write("/etc/pve/ha/resources.cfg", f"vm: 950\n\tstate ignored\n\nct: 950\n{about}\nct: 951\n\tstate ignored\n")
    said = host.call(*START)
    assert ("container 950, which is to go off for it, is under HA" in said) is refused
    assert host.with_the_vm() is not refused


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("sys/class/vtconsole/vtcon1/name", "the host's console draws on it (fb0)"),
        ("etc/pve/ha/resources.cfg", "is under HA"),
    ],
)
def test_what_cant_be_read_keeps_the_card_with_the_host(host: Host, path: str, words: str) -> None:
    """Nobody's, by what can be read, is no "nobody": each of these is a folder here."""
    (host.root / DEVICES[1:] / GPU / "graphics/fb0").mkdir(parents=True)
    host.write("/sys/class/vtconsole/vtcon0/name", "(S) dummy device\n")
    host.write("/sys/class/vtconsole/vtcon0/bind", "1\n")
    (host.root / path).mkdir(parents=True)
    assert words in host.call(*START)
    assert host.at_home() and "shutdown" not in host.asked()


@pytest.mark.parametrize(
    ("attribute", "refused"),
    [
        ("boot_vga 1", True),
        ("boot_vga 0", False),
        ("sriov_numvfs 10", True),
        ("sriov_numvfs 0", False),
        ("none 0", False),
    ],
)
def test_a_screen_or_a_card_with_virtual_functions_is_not_given(host: Host, attribute: str, refused: bool) -> None:
    name, value = attribute.split()
    host.write(f"{DEVICES}/{GPU}/{name}", f"{value}\n")
    assert refuses(card_users._need_free_function, host.system(), GPU) is refused


@pytest.mark.parametrize(
    ("modeset", "version", "only", "refused"),
    [
        ("Y", "580.65.06", False, True),
        ("Y", "580.65.06", True, False),
        ("Y", "580.105.08", False, False),
        ("Y", "none", False, True),
        ("N", "580.65.06", False, False),
        ("", "580.65.06", False, True),  # it can't be read
    ],
)
def test_nvidia_drm_lets_go_of_one_card_of_several_in_newer_versions_alone(
    host: Host, modeset: str, version: str, refused: bool
) -> None:
    host.write("/sys/module/nvidia_drm/parameters/modeset", f"{modeset}\n")
    text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  x\n"
    host.write("/proc/driver/nvidia/version", text)
    assert refuses(card_users._need_drm_that_lets_go, SharedCard(host.system(), BIG)) is refused


@pytest.mark.parametrize(
    ("name", "bind", "refused"),
    [("(M) frame buffer device", "1", True), ("(M) frame buffer device", "0", False), ("(S) dummy device", "1", False)],
)
def test_a_text_console_that_draws_on_the_card_keeps_it(host: Host, name: str, bind: str, refused: bool) -> None:
    host.write("/sys/class/vtconsole/vtcon1/name", f"{name}\n")
    host.write("/sys/class/vtconsole/vtcon1/bind", f"{bind}\n")
    assert not refuses(card_users._need_no_console, SharedCard(host.system(), BIG)), "it draws on another card"
    (host.root / DEVICES[1:] / GPU / "graphics/fb0").mkdir(parents=True)
    assert refuses(card_users._need_no_console, SharedCard(host.system(), BIG)) is refused


def refuses(check: Callable[..., object], *arguments: object) -> bool:
    try:
        check(*arguments)
    except handover.RefusedError:
        return True
    return False


def test_containers_are_shut_down_in_the_order_of_the_hosts_start_backwards(host: Host) -> None:
    for ctid, startup in (("950", "order=4"), ("951", "order=3,down=8"), ("952", "up=1"), ("953", "3")):
        host.write(f"/etc/pve/lxc/{ctid}.conf", f"dev0: /dev/nvidia0\nstartup: {startup}\n")
        host.write(f"/state/pct/{ctid}", "running")
    host.write("/etc/pve/lxc/954.conf", "dev0: /dev/nvidia1\n")
    host.write("/state/pct/954", "running")
    host.write("/etc/pve/lxc/955.conf", "dev0: /dev/nvidia0\n")
    host.write("/state/pct/955", "stopped")
    assert [*card_users.running_with(SharedCard(host.system(), BIG))] == ["952", "950", "953", "951"]


@pytest.mark.parametrize("armed_in", ["boot", "before"])
def test_a_boot_that_is_not_on_trial_stands_against_nothing(host: Host, armed_in: str) -> None:
    """A trial is armed for the next boot, or has ended."""
    host.write("/proc/cmdline", "quiet\n")
    host.write("/var/lib/homelab/trial", f"boot {armed_in}\nvfio vfio-pci.ids=1\n")
    host.run(*START)
    assert host.with_the_vm()


@pytest.mark.parametrize("now_", ["", "vfio-pci"])
def test_a_card_that_no_driver_took_is_given_to_its_driver_again(lent: Host, now_: str) -> None:
    lent.fails("systemd-run step_attach")
    lent.run(*SERVICE)
    assert lent.state() == "HELD" and lent.drivers()[0] == "" and lent.read(CT950) == "stopped"
    lent.fails()
    if now_:  # by a person
        lent.bind(GPU, now_)
    lent.run(*SERVICE)
    if now_:
        assert lent.state() == "HELD" and lent.drivers()[0] == now_
    else:
        assert lent.at_home() and lent.state() == ""
