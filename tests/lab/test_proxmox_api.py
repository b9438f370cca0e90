"""The program's own client on the lab's API, over SSH: what it outlasts, what it asks again, what it says."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from typing import IO, Any

import pytest

from homelab.errors import ApiError, ElsewhereError, LockHeldError, NoQuorumError, UnansweredError
from homelab.remote.proxmox.api import Api
from lab import Lab
from tests.lab.stack_kit import NODE, VM, Quick, client, host_of, map_card

CONFIG = f"nodes/{NODE}/qemu/{VM}/config"


def put(lab: Lab, clock: Quick | None = None, **options: Any) -> None:
    api = client(lab, clock)
    api.put(CONFIG, "VM 103 changed", digest=api.get(CONFIG, "")["digest"], **options)


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
        "cat >$HOMELAB_ROOT/etc/pve/.members",
        stdin=json.dumps({"cluster": {"name": "c", "quorate": 0}, "nodelist": nodes}),
    )


# -- the lock of a VM's configuration --------------------------------------------------------------------------------
def test_a_change_waits_for_a_lock_that_another_process_holds_for_half_a_minute(lab: Lab) -> None:
    lock = held(lab)
    clock = Quick({15: lock.close})
    put(lab, clock, onboot="0")
    assert client(lab).get(CONFIG, "")["onboot"] == 0
    assert clock.at > 20


@pytest.mark.parametrize("verb", ["stop", "shutdown"])
def test_a_task_that_waited_for_the_lock_in_vain_is_started_again(lab: Lab, verb: str) -> None:
    lock = held(lab)
    clock = Quick({12: lock.close})
    client(lab, clock).carry_out("post", f"nodes/{NODE}/qemu/{VM}/status/{verb}", "off", 60, print)
    assert client(lab).get(f"nodes/{NODE}/qemu/{VM}/status/current", "")["status"] == "stopped"


def test_a_lock_that_is_never_released_ends_after_more_than_a_minute(lab: Lab) -> None:
    clock = Quick()
    with held(lab), pytest.raises(LockHeldError) as error:
        put(lab, clock, onboot="0")
    assert 60 < clock.at < 180
    assert "nothing was done" in error.value.why and "pvenode task list" in error.value.next


def test_a_task_that_had_begun_before_it_lacked_a_lock_is_not_started_again(lab: Lab) -> None:
    lab.fault(
        "task-fails", f"qmstop=stopping failed: can't lock file '/var/lock/qemu-server/lock-{VM}.conf' - got timeout"
    )
    mark = lab.mark()
    with pytest.raises(ApiError):
        client(lab).carry_out("post", f"nodes/{NODE}/qemu/{VM}/status/stop", "off", 60, print)
    assert len([call for call in lab.api_calls(mark) if call["path"].endswith("/status/stop")]) == 1


# -- outages, lost requests, a lost answer ---------------------------------------------------------------------------------
def test_a_read_outlasts_requests_that_are_lost(lab: Lab) -> None:
    lab.fault("api-loses", f"GET /{CONFIG}=4")
    assert client(lab).get(CONFIG, "")["name"] == "Sandbox"


def test_an_api_that_answers_too_late_is_named(lab: Lab) -> None:
    lab.fault("api-seconds", 3)
    host = host_of(lab)
    hasty = host.model_copy(update={"timeouts": host.timeouts.model_copy(update={"api": 1})})
    with pytest.raises(UnansweredError, match="no answer from Proxmox VE on 127.0.0.1"):
        Api(hasty, NODE, clock=Quick(), patience=0).get(CONFIG, "")


def test_a_change_whose_answer_is_lost_isnt_made_twice(lab: Lab) -> None:
    path = f"nodes/{NODE}/qemu/{VM}/status/stop"
    lab.fault("api-drops", f"POST /{path}")
    mark = lab.mark()
    with pytest.raises(UnansweredError, match="it isn't known whether a change was carried out"):
        client(lab).carry_out("post", path, "off", 60, print)
    assert [call["path"] for call in lab.api_calls(mark) if call["path"].endswith("/status/stop")] == [f"/{path}"]


# -- clusters --------------------------------------------------------------------------------------------------------------
def removed(lab: Lab) -> None:
    lab.run(f"qm stop {VM}")
    path = f"nodes/{NODE}/qemu/{VM}"
    client(lab).carry_out("delete", path, "gone", 60, print)


CHANGES: dict[str, Callable[[Lab], object]] = {
    "a configuration": lambda lab: put(lab, onboot="0"),
    "a mapping": map_card,
    "a start": lambda lab: client(lab).post(f"nodes/{NODE}/qemu/{VM}/status/start", "on"),
    "a removal": removed,
}


@pytest.mark.parametrize("what", CHANGES)
def test_without_a_quorum_there_is_one_message_for_all_texts(lab: Lab, what: str) -> None:
    without_quorum(lab)
    with pytest.raises(NoQuorumError) as error:
        CHANGES[what](lab)
    assert "pvecm status" in error.value.next and "pvecm expected 1" in error.value.next


def test_right_after_the_quorum_is_back_a_start_is_tried_again(lab: Lab) -> None:
    lab.run(f"qm stop {VM}")
    without_quorum(lab)
    api = client(lab, Quick({2: (lab.root / "etc/pve/.members").unlink}))
    api.carry_out("post", f"nodes/{NODE}/qemu/{VM}/status/start", "on", 60, print)


def test_a_vm_of_another_node_is_named_with_its_node(lab: Lab) -> None:
    lab.run(
        "mkdir -p $HOMELAB_ROOT/etc/pve/nodes/pve2/qemu-server; echo 'name: far' >$HOMELAB_ROOT/etc/pve/nodes/pve2/qemu-server/203.conf"
    )
    with pytest.raises(ElsewhereError) as error:
        client(lab).get(f"nodes/{NODE}/qemu/203/config", "")
    assert "VM 203 is on the node pve2, not on pve" in error.value.found
    assert "qm migrate 203 pve" in error.value.next
    with pytest.raises(ApiError, match="VM 203 already exists on node 'pve2'"):
        client(lab).carry_out("post", f"nodes/{NODE}/qemu", "a VM", 60, print, vmid=203)


# -- texts --------------------------------------------------------------------------------------------------
def test_no_message_shows_a_control_character(lab: Lab) -> None:
    lab.fault("api-answers", f"GET /{CONFIG}=500 unable to\x9b31m")
    with pytest.raises(ApiError) as error:
        client(lab).get(CONFIG, "")
    assert "unable to" in str(error.value) and "\x9b" not in str(error.value)


@pytest.mark.parametrize("name", ["../../access/users", "a/..", "x?y=1", "x#", "%2e%2e", "a\\b"])
def test_no_name_leads_to_another_path_of_the_api(lab: Lab, name: str) -> None:
    with pytest.raises(ValueError, match="no path of the API"):
        client(lab).get(f"cluster/mapping/pci/{name}", "")
