"""The program's own client on the lab's API, over SSH: what it outlasts, what it asks again, what it says."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from homelab.errors import HomelabError
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox import machine as machine_module
from homelab.remote.proxmox.api import Api, Clock
from homelab.remote.proxmox.errors import (
    ApiError,
    ElsewhereError,
    LockHeldError,
    NoQuorumError,
    StillRunsError,
    TaskFailedError,
    UnansweredError,
)
from homelab.remote.proxmox.machine import Machine
from homelab.settings import Host
from homelab.shapes import ShutdownInputs
from homelab.vm.config import Change
from lab import Lab

NODE, VM = "pve", 103
CONFIG = f"nodes/{NODE}/qemu/{VM}/config"
POLICY = ShutdownInputs(timeout=5, otherwise="fail")
MAPPED = {"hostpci0": "mapping=rtx5090,pcie=1"}


class Quick(Clock):
    """Time that passes by being waited for; ``then`` is what happens meanwhile: after so many waits, do that."""

    def __init__(self, then: dict[int, Callable[[], object]] | None = None, real: float = 0.005) -> None:
        self.at, self.waits, self._then, self._real = 0.0, 0, then or {}, real

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self.waits += 1
        self._then.get(self.waits, lambda: None)()
        time.sleep(self._real)  # the lab's tasks take real time


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A host whose card can be given to a VM."""
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("api") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    shared_lab.reset()


def host_of(lab: Lab, **ssh: Any) -> Host:
    about = {key: lab.connection[key] for key in ("hostKey", "privateKeyFile", "port")}
    cards = {"rtx5090": {"match": "10de:2b85"}}
    return Host.model_validate({"address": lab.connection["host"], "ssh": {**about, **ssh}, "gpus": cards})


def client(lab: Lab, clock: Clock | None = None) -> Api:
    return Api(host_of(lab), NODE, clock=clock or Quick())


def machine(lab: Lab, clock: Clock | None = None) -> Machine:
    return Machine(client(lab, clock), VM, "sandbox", memory=Remembering(False))


def set_to(**values: str) -> Callable[[dict[str, str]], Change]:
    """What is still to be written so that these hold."""
    return lambda config: Change({key: value for key, value in values.items() if config.get(key) != value})


def held(lab: Lab) -> IO[str]:
    """The VM's lock file, held as by another process."""
    path = lab.root / f"run/lock/qemu-server/lock-{VM}.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def without_quorum(lab: Lab) -> None:
    nodes = {NODE: {"id": 1, "online": 1, "ip": "192.168.0.202"}, "pve2": {"id": 2, "online": 0, "ip": "192.168.0.203"}}
    lab.run(
        "cat >$ROOT/etc/pve/.members", stdin=json.dumps({"cluster": {"name": "c", "quorate": 0}, "nodelist": nodes})
    )


def map_card(lab: Lab) -> None:
    entry = "node=pve,path=0000:01:00,id=10de:2b85,iommugroup=14,subsystem-id=1043:89e3"
    client(lab).post("cluster/mapping/pci", "a mapping", id="rtx5090", map=entry)


# -- the lock of a VM's configuration --------------------------------------------------------------------------------
def test_a_change_waits_for_a_lock_that_another_process_holds_for_half_a_minute(lab: Lab) -> None:
    lock = held(lab)
    clock = Quick({15: lock.close})
    assert machine(lab, clock).converge(set_to(onboot="0"), [], POLICY, "keep") is True
    assert client(lab).get(CONFIG, "")["onboot"] == 0
    assert clock.at > 20


@pytest.mark.parametrize("verb", ["stop", "shutdown"])
def test_a_task_that_waited_for_the_lock_in_vain_is_started_again(lab: Lab, verb: str) -> None:
    said: list[str] = []
    lock = held(lab)
    clock = Quick({12: lock.close})
    client(lab, clock).carry_out(
        "post", f"nodes/{NODE}/qemu/{VM}/status/{verb}", "off", 60, said.append, kinds=(f"qm{verb}",)
    )
    assert client(lab).get(f"nodes/{NODE}/qemu/{VM}/status/current", "")["status"] == "stopped"
    assert "another process holds its lock: trying again" in said


def test_a_lock_that_is_never_released_ends_after_more_than_a_minute_and_names_the_task_that_holds_it(lab: Lab) -> None:
    clock = Quick()
    lab.fault("task-seconds", 30)
    upid = client(lab).post(f"nodes/{NODE}/qemu/{VM}/status/shutdown", "off", timeout=30)
    with held(lab), pytest.raises(LockHeldError) as error:
        machine(lab, clock).converge(set_to(onboot="0"), [], POLICY, "keep")
    assert 60 < clock.at < 180
    assert f"qmshutdown of root@pam ({upid})" in error.value.found
    assert "nothing was done" in error.value.why


def test_a_lock_that_no_task_holds_says_who_may_hold_it(lab: Lab) -> None:
    with held(lab), pytest.raises(LockHeldError, match="qm cleanup"):
        machine(lab).converge(set_to(onboot="0"), [], POLICY, "keep")


def test_a_task_that_had_begun_before_it_lacked_a_lock_is_not_started_again(lab: Lab) -> None:
    lab.fault(
        "task-fails", f"qmstop=stopping failed: can't lock file '/var/lock/qemu-server/lock-{VM}.conf' - got timeout"
    )
    mark = lab.mark()
    with pytest.raises(ApiError):
        client(lab).carry_out("post", f"nodes/{NODE}/qemu/{VM}/status/stop", "off", 60, print, kinds=("qmstop",))
    assert len([call for call in lab.api_calls(mark) if call["path"].endswith("/status/stop")]) == 1


# -- outages, lost requests, lost answers ---------------------------------------------------------------------------------
def test_a_read_outlasts_requests_that_are_lost(lab: Lab) -> None:
    lab.fault("api-loses", f"GET /{CONFIG}=4")
    assert client(lab).get(CONFIG, "")["name"] == "Sandbox"


def test_a_read_fails_when_nobody_answers_for_long(lab: Lab) -> None:
    lab.fault("api-loses", f"GET /{CONFIG}=1000")
    clock = Quick()
    with pytest.raises(UnansweredError, match="systemctl status pvedaemon"):
        client(lab, clock).get(CONFIG, "")
    assert api_module.OUTAGE_SECONDS <= clock.at < 2 * api_module.OUTAGE_SECONDS


def test_an_api_that_answers_too_late_is_named(lab: Lab) -> None:
    lab.fault("api-seconds", 3)
    host = host_of(lab)
    hasty = host.model_copy(update={"timeouts": host.timeouts.model_copy(update={"api": 1})})
    with pytest.raises(UnansweredError, match="no answer from Proxmox VE on 127.0.0.1"):
        Api(hasty, NODE, clock=Quick(), patience=0).get(CONFIG, "")


@pytest.mark.parametrize("fault", ["api-loses", "api-drops"])
def test_a_change_whose_request_or_answer_is_lost_is_made_once(lab: Lab, fault: str) -> None:
    asked = f"PUT /{CONFIG}"
    lab.fault(fault, f"{asked}=1" if fault == "api-loses" else asked)
    mark = lab.mark()
    machine(lab).converge(set_to(onboot="0", tags="ours"), [], POLICY, "keep")
    lab.fault(fault, None)
    assert client(lab).get(CONFIG, "")["tags"] == "ours"
    done = [call for call in lab.api_calls(mark) if call["method"] == "PUT" and call["status"] == 200]
    assert len(done) == 1


def test_a_change_whose_answer_is_lost_can_still_be_taken_back(lab: Lab) -> None:
    map_card(lab)
    machine(lab).shut_down(POLICY)
    before = client(lab).get(CONFIG, "")
    lab.fault("api-drops", f"PUT /{CONFIG}")
    lab.fault("task-fails", "qmstart=out of luck")
    with pytest.raises(TaskFailedError, match="has its old configuration back"):
        machine(lab).converge(set_to(**MAPPED), [], POLICY, "running")
    assert client(lab).get(CONFIG, "") == before


def test_a_change_is_not_taken_back_while_its_start_is_under_way(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that waits for the containers that use its card."""
    map_card(lab)
    machine(lab).shut_down(POLICY)

    def start(self: Machine, steady: float = 0) -> None:
        raise StillRunsError(wanted="it started", found="its task still runs", why="", next="", status=0, reason="")

    monkeypatch.setattr(Machine, "start", start)
    with pytest.raises(StillRunsError):
        machine(lab).converge(set_to(**MAPPED), [], POLICY, "running")
    now = client(lab).get(CONFIG, "")
    assert {key: now[key] for key in MAPPED} == MAPPED


@pytest.mark.parametrize("fault", ["api-loses", "api-drops"])
@pytest.mark.parametrize(("verb", "kind"), [("stop", "qmstop"), ("shutdown", "qmshutdown")])
def test_what_starts_a_task_is_carried_out_once_though_its_request_or_answer_is_lost(
    lab: Lab, fault: str, verb: str, kind: str
) -> None:
    path = f"nodes/{NODE}/qemu/{VM}/status/{verb}"
    lab.fault(fault, f"POST /{path}=1" if fault == "api-loses" else f"POST /{path}")
    client(lab).carry_out("post", path, "off", 60, print, kinds=(kind,))
    assert client(lab).get(f"nodes/{NODE}/qemu/{VM}/status/current", "")["status"] == "stopped"
    started = [task for task in client(lab).tasks(source="all", vmid=VM) if task["type"] == kind]
    assert len(started) == 1


@pytest.mark.parametrize("fault", ["api-loses", "api-drops"])
def test_a_vm_whose_creation_or_its_answer_was_lost_is_made_once_and_anothers_is_none(lab: Lab, fault: str) -> None:
    path = f"nodes/{NODE}/qemu"
    options: dict[str, Any] = {"kinds": ("qmcreate",), "name": "new"}
    client(lab).carry_out("post", path, "another VM", 60, print, vmid=201, **options)
    lab.fault(fault, f"POST /{path}=1" if fault == "api-loses" else f"POST /{path}")
    client(lab).carry_out("post", path, "a VM", 60, print, vmid=200, **options)
    assert client(lab).get(f"nodes/{NODE}/qemu/200/config", "")["name"] == "new"


# -- clusters --------------------------------------------------------------------------------------------------------------
def removed(vm: Machine) -> None:
    vm.shut_down(POLICY)
    vm.destroy()


CHANGES: dict[str, Callable[[Lab], object]] = {
    "a configuration": lambda lab: machine(lab).converge(set_to(onboot="0"), [], POLICY, "keep"),
    "a mapping": map_card,
    "a start": lambda lab: client(lab).post(f"nodes/{NODE}/qemu/{VM}/status/start", "on"),
    "a removal": lambda lab: removed(machine(lab)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_without_a_quorum_there_is_one_message_for_all_texts(lab: Lab, what: str) -> None:
    without_quorum(lab)
    with pytest.raises(NoQuorumError) as error:
        CHANGES[what](lab)
    assert "no quorum; pve2 of the cluster's 2 nodes don't answer" in error.value.found
    assert "pvecm status" in error.value.next and "pvecm expected 1" in error.value.next


def test_right_after_the_quorum_is_back_a_start_is_tried_again(lab: Lab) -> None:
    machine(lab).shut_down(POLICY)
    without_quorum(lab)
    clock = Quick({2: (lab.root / "etc/pve/.members").unlink})
    machine(lab, clock).start()


def test_a_vm_of_another_node_is_named_with_its_node(lab: Lab) -> None:
    lab.run(
        "mkdir -p $ROOT/etc/pve/nodes/pve2/qemu-server; echo 'name: far' >$ROOT/etc/pve/nodes/pve2/qemu-server/203.conf"
    )
    far = Machine(client(lab), 203, "far", memory=Remembering(False))
    for asked in (far.config, far.exists, far.start):
        with pytest.raises(ElsewhereError) as error:
            asked()
        assert "VM 203 is on the node pve2, not on pve" in error.value.found
        assert "qm migrate 203 pve" in error.value.next
    with pytest.raises(ElsewhereError, match="VM 203 is on the node pve2"):
        client(lab).carry_out("post", f"nodes/{NODE}/qemu", "a VM", 60, print, kinds=("qmcreate",), vmid=203)


# -- what a start says of its cards ----------------------------------------------------------------------------------------
def test_a_start_hands_on_what_its_task_says_of_a_card_and_takes_nothing_back(lab: Lab) -> None:
    map_card(lab)
    machine(lab).shut_down(POLICY)
    lab.fault("reset-fails", True)
    vm = machine(lab)
    assert vm.converge(set_to(**MAPPED), [], POLICY, "running") and vm.running()
    assert "failed to reset PCI device '0000:01:00.0'" in "\n".join(vm.start_log)
    assert vm.config()["hostpci0"] == MAPPED["hostpci0"]


# -- secrets, texts -------------------------------------------------------------------------------------------
def test_no_message_shows_a_secret_or_a_control_character(lab: Lab) -> None:
    lab.fault("api-answers", f"GET /{CONFIG}=500 unable to\x9b31m")
    with pytest.raises(ApiError) as error:
        client(lab).get(CONFIG, "")
    assert "unable to" in str(error.value) and "\x9b" not in str(error.value)
    lab.fault("api-answers", f"PUT /{CONFIG}=400 got 'hunter2hunter2'")
    with pytest.raises(ApiError) as error:
        client(lab).put(CONFIG, "", cipassword="hunter2hunter2")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["../../access/users", "a/..", "x?y=1", "x#", "%2e%2e", "a\\b"])
def test_no_name_leads_to_another_path_of_the_api(lab: Lab, name: str) -> None:
    with pytest.raises(ValueError, match="no path of the API"):
        client(lab).get(f"cluster/mapping/pci/{name}", "")


def test_a_password_that_is_set_is_not_told(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    machine(lab)._write(lambda _: Change({"cipassword": "hunter2hunter2", "onboot": "0"}))
    told = capsys.readouterr().out
    assert "onboot: 0" in told and "cipassword" in told and "hunter2" not in told


def test_a_task_that_says_much_is_shown_in_part(lab: Lab, tmp_path: Path) -> None:
    said: list[str] = []
    log = api_module._Log(said.append, "UPID")
    log.add([f"{number} {'x' * 1000}" for number in range(5000)])
    assert len(said) == api_module.SHOWN_LINES + 1 and max(map(len, said)) < 500
    assert len(log.lines) == api_module.SHOWN_LINES + api_module.TAIL_LINES
    assert log.lines[-1].startswith("4999 ")


# -- a VM whose hookscript hands it its card -------------------------------------------------------------------------
def with_hookscript(lab: Lab) -> None:
    lab.run("pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets")
    lab.run(
        "mkdir -p $ROOT/var/lib/vz/snippets; cat >$ROOT/var/lib/vz/snippets/a.sh; chmod +x $ROOT/var/lib/vz/snippets/a.sh",
        stdin="#!/bin/sh\n",
    )
    lab.run(f"qm set {VM} --hookscript local:snippets/a.sh")


def announcing(lab: Lab, said: list[bool]) -> Machine:
    """A machine whose starts are announced; ``said``: did the VM run then?"""
    api = client(lab)
    return Machine(api, VM, "sandbox", lambda: said.append(machine(lab).running()), memory=Remembering(False))


def test_each_start_of_a_vm_with_a_hookscript_is_announced_before_anything_is_stopped(lab: Lab) -> None:
    """By whatever its card is named, and also where that is written in the same step."""
    said: list[bool] = []
    announcing(lab, said).converge(set_to(cores="2"), ["cores"], POLICY, "keep")
    assert said == [], "without a hookscript nobody asks"
    with_hookscript(lab)
    announcing(lab, said).converge(set_to(cores="4"), ["cores"], POLICY, "keep")
    assert said == [True]
    announcing(lab, said).converge(set_to(cores="4"), ["cores"], POLICY, "stopped")
    assert said == [True], "a VM that is only shut down may not take it"
    announcing(lab, said).converge(set_to(cores="4"), ["cores"], POLICY, "running")
    assert said == [True, False]


@pytest.mark.parametrize("runs", [True, False])
def test_a_start_that_can_not_be_announced_leaves_the_vm_as_it_was(lab: Lab, runs: bool) -> None:
    with_hookscript(lab)
    if not runs:
        machine(lab).shut_down(POLICY)

    def fails() -> None:
        raise HomelabError(wanted="VM 103 to take its cards", found="/run is full", why="", next="")

    with pytest.raises(HomelabError, match="/run is full"):
        vm = Machine(client(lab), VM, "sandbox", fails, memory=Remembering(False))
        vm.converge(set_to(cores="4"), ["cores"], POLICY, "running")
    assert machine(lab).running() is runs
    assert str(client(lab).get(CONFIG, "")["cores"]) != "4"


# -- HA ---------------------------------------------------------------------------------------------------------------------
def under_ha(lab: Lab) -> None:
    text = f"vm: {VM}\n\tstate started\n\n"
    lab.run("mkdir -p $ROOT/etc/pve/ha; cat >$ROOT/etc/pve/ha/resources.cfg", stdin=text)


def kinds_of_tasks(lab: Lab) -> list[str]:
    return [task["type"] for task in reversed(client(lab).tasks(source="all", vmid=VM, limit=500))]


@pytest.mark.parametrize("ignores", [False, True], ids=["it goes off", "it doesn't hear"])
def test_a_vm_under_ha_is_stopped_and_started_through_ha(lab: Lab, ignores: bool) -> None:
    """The manager's tasks end at once, and the VM follows; one that doesn't hear a shutdown is ended by force when its time is over, as HA does."""
    under_ha(lab)
    if ignores:
        lab.fault("guest-ignores-shutdown", VM)
    assert (
        machine(lab, Quick(real=0.05)).converge(
            set_to(cores="4"), ["cores"], ShutdownInputs(timeout=1, otherwise="fail"), "keep"
        )
        is True
    )
    kinds = kinds_of_tasks(lab)
    assert [kind for kind in kinds if kind.startswith("ha")] == ["hastop", "hastart"]
    assert not {"qmshutdown"} & set(kinds)
    current = client(lab).get(f"nodes/{NODE}/qemu/{VM}/config", "", current=1)
    assert current["cores"] == 4


def test_a_vm_that_ha_does_not_come_to_is_said_and_runs_on_as_it_was(lab: Lab) -> None:
    under_ha(lab)
    lab.fault("ha-idle", True)
    with pytest.raises(HomelabError, match="HA was asked to, and has not switched it off"):
        machine(lab).converge(set_to(cores="4"), ["cores"], ShutdownInputs(timeout=1, otherwise="stop"), "keep")
    # It was asked to stop it, and would when it comes to it: it is asked to keep it running.
    assert [kind for kind in kinds_of_tasks(lab) if kind.startswith("ha")] == ["hastop", "hastart"]
    assert "cores" not in [
        one["key"] for one in client(lab).get(f"nodes/{NODE}/qemu/{VM}/pending", "") if "pending" in one
    ]


def test_a_vm_that_ha_does_not_come_to_start_is_not_said_to_have_gone_off(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(f"qm stop {VM}")
    under_ha(lab)
    lab.fault("ha-idle", True)
    monkeypatch.setattr(machine_module, "HA_SECONDS", 0)
    with pytest.raises(HomelabError) as refused:
        machine(lab).start()
    assert "HA was asked to, and has not started it" in refused.value.found
    assert "QEMU ended" not in refused.value.why and "ha-manager status" in refused.value.next


def test_a_shutdown_that_fails_leaves_ha_with_what_it_was_to_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """HA takes the request and the guest hasn't gone off: with nothing more said, HA ends it by force after this program has given up."""
    under_ha(lab)
    lab.fault("guest-ignores-shutdown", VM)
    monkeypatch.setattr(machine_module, "HA_SECONDS", 0)
    with pytest.raises(HomelabError, match="has not switched it off"):
        machine(lab).converge(set_to(cores="4"), ["cores"], ShutdownInputs(timeout=60, otherwise="fail"), "keep")
    assert "state started" in (lab.root / "etc/pve/ha/resources.cfg").read_text() and machine(lab).running()


class Remembering:
    """A memory by which a killed run has shut the VM down, or none has."""

    def __init__(self, ran: bool) -> None:
        self.ran = ran

    def keep(self, identity: str, tasks: Sequence[str] = ()) -> None:
        self.ran = True

    def recalls(self, identity: Callable[[], str]) -> bool:
        return self.ran

    def forget(self) -> None:
        self.ran = False


class Noting(Remembering):
    """A memory that keeps each note's tasks; at the second press of the button the guest has booted. ``ends``: the disk is full after so many notes."""

    def __init__(self, lab: Lab, ends: int) -> None:
        super().__init__(False)
        self.lab, self.ends, self.notes = lab, ends, list[list[str]]()

    def keep(self, identity: str, tasks: Sequence[str] = ()) -> None:
        self.notes.append([*tasks])
        if len(tasks) == 2:
            self.lab.fault("guest-ignores-shutdown", None)
        if len(self.notes) > self.ends:
            raise HomelabError(wanted="a note", found="the disk is full", why="", next="")
        super().keep(identity)


@pytest.mark.parametrize("ends", [1000, 1], ids=["noted each time", "noted once"])
def test_each_task_that_shuts_a_vm_down_is_noted_as_soon_as_it_is_known(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ends: int
) -> None:
    """By these notes a killed run's shutdowns are told from those of the owner, whose tasks are root@pam's as well."""
    monkeypatch.setattr(machine_module, "PRESS_SECONDS", 1)
    lab.fault("guest-ignores-shutdown", VM)
    before, memory = set(upids(lab)), Noting(lab, ends)
    vm = Machine(client(lab, Quick(real=0.05)), VM, "sandbox", memory=memory)
    assert vm.converge(set_to(cores="4"), ["cores"], ShutdownInputs(timeout=10**6, otherwise="fail"), "keep") is True
    shutdowns = [upid for upid in upids(lab) if upid not in before]
    assert memory.notes == [[], shutdowns[:1], shutdowns] and len(shutdowns) == 2
    assert ("the disk is full" in capsys.readouterr().out) is (ends == 1) and memory.ran is False


def upids(lab: Lab) -> list[str]:
    """Of the VM's shutdowns, the earliest first."""
    tasks = client(lab).tasks(source="all", vmid=VM, limit=500, typefilter="qmshutdown")
    return [task["upid"] for task in reversed(tasks)]


@pytest.mark.parametrize("by_owner", [True, False], ids=["its owner has shut it down", "the run has"])
def test_a_vm_whose_shutdown_may_be_its_owners_is_not_started_again(lab: Lab, by_owner: bool) -> None:
    """The answer is lost, and a task of root@pam is there: the owner's at the web interface looks the same."""
    path = f"/nodes/{NODE}/qemu/{VM}/status/shutdown"
    memory = Noting(lab, 1000)

    def owner_shuts_it_down(identity: str, tasks: Sequence[str] = ()) -> None:
        memory.notes.append([*tasks])
        if by_owner:
            lab.ask_api("POST", path)
        lab.fault("api-loses" if by_owner else "api-drops", f"POST {path}=1" if by_owner else f"POST {path}")

    memory.keep = owner_shuts_it_down  # type: ignore[method-assign]
    vm = Machine(client(lab, Quick(real=0.05)), VM, "sandbox", memory=memory)
    with pytest.raises(UnansweredError) as error:
        vm.converge(set_to(cores="4"), ["cores"], POLICY, "keep")
    assert "its owner may have switched it off" in error.value.next and memory.notes == [[]]
    starts = [kind for kind in kinds_of_tasks(lab) if kind == "qmstart"]
    assert not starts and machine(lab)._reaches_power(running=False, deadline=1000)


@pytest.mark.parametrize("overrules", [False, True], ids=["before the run's shutdown", "in the midst of it"])
def test_a_vm_that_its_owner_stops_beside_a_run_stays_off_with_the_change(
    lab: Lab, capsys: pytest.CaptureFixture[str], overrules: bool
) -> None:
    class Stopped(Remembering):
        def keep(self, identity: str, tasks: Sequence[str] = ()) -> None:
            if bool(tasks) is overrules:
                options = {"overrule-shutdown": "1"} if overrules else {}
                lab.ask_api("POST", f"/nodes/{NODE}/qemu/{VM}/status/stop", **options)

    if overrules:
        lab.fault("guest-ignores-shutdown", VM)
    memory = Stopped(False)
    vm = Machine(client(lab, Quick(real=0.05)), VM, "sandbox", memory=memory)
    assert vm.converge(set_to(cores="4"), ["cores"], POLICY, "keep") is False
    assert "root@pam has switched VM 103 (sandbox) off meanwhile" in capsys.readouterr().out
    assert vm.config()["cores"] == "4" and not vm.running() and memory.ran is False


@pytest.mark.parametrize("ours", [True, False], ids=["a killed run", "somebody else"])
def test_a_vm_that_ha_was_asked_to_stop_runs_on_only_if_a_killed_run_has_asked(lab: Lab, ours: bool) -> None:
    under_ha(lab)
    lab.run("sed -i s/started/stopped/ $ROOT/etc/pve/ha/resources.cfg")
    vm = Machine(client(lab), VM, "sandbox", memory=(memory := Remembering(ours)))
    assert vm.converge(set_to(), ["cores"], POLICY, "keep") is True and memory.ran is False
    state = "started" if ours else "stopped"
    assert f"state {state}" in (lab.root / "etc/pve/ha/resources.cfg").read_text()
    if not ours:
        # What waits for the next start is written; who has asked for the stop wants it off.
        assert vm.converge(set_to(cores="4"), ["cores"], POLICY, "keep") is False
        assert not machine(lab).running() and memory.ran is False


def test_a_start_of_has_hands_on_what_its_task_says_of_a_card(lab: Lab) -> None:
    """The request's own log says nothing of a card."""
    under_ha(lab)
    map_card(lab)
    machine(lab).shut_down(POLICY)
    lab.fault("reset-fails", True)
    vm = machine(lab)
    assert vm.converge(set_to(**MAPPED), [], POLICY, "running")
    assert "failed to reset PCI device '0000:01:00.0'" in "\n".join(vm.start_log)


def test_a_vm_that_ha_has_given_up_on_is_named_and_how_to_get_it_back(lab: Lab) -> None:
    machine(lab).shut_down(POLICY)
    lab.fault("ha-error", VM)  # before HA has it, which would start it
    under_ha(lab)
    before = kinds_of_tasks(lab)
    with pytest.raises(ApiError, match="ha-manager set vm:103 --state disabled"):
        machine(lab).start()
    assert kinds_of_tasks(lab) == before
