"""What of a made guest is changed in place."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.errors import HomelabError, NotThereError, SeveralErrors
from homelab.guest.resource import Guest
from homelab.guest.work import GuestWork, written_of
from tests.rows import rows
from tests.unit.test_new_guests import INPUTS, error_of

BEFORE = dataclasses.replace(INPUTS, size=8, config={"memory": "512", "net0": "virtio,bridge=vmbr0"})
MAC = "BC:24:11:00:00:01"
CONFIG = {"memory": "512", "net0": f"virtio={MAC},bridge=vmbr0,firewall=1", "tags": "x"}
LARGER: dict[str, Any] = {"size": 16}


class Work(GuestWork):
    """`done`: what is set, and whether the disk grows."""

    def __init__(self, *, config: dict[str, str] = CONFIG) -> None:
        super().__init__({})
        self.done: list[Any] = []
        self.config_now = config

    def config(self, inputs: Any) -> dict[str, str]:
        return self.config_now

    def api(self, inputs: Any) -> Any:
        return SimpleNamespace(host=SimpleNamespace(timeouts=SimpleNamespace(create=1)))

    def _owner(self, inputs: Any) -> str:
        return ""  # nothing is noted

    def _put(self, inputs: Any, options: Any) -> None:
        self.done += [("put", options)] if options else []

    def _set(self, inputs: Any, settings: Any) -> None:
        self.done.append(settings)

    def _grow(self, inputs: Any) -> None:
        self.done.append(inputs.size)


def net(value: str) -> dict[str, str]:
    return {**BEFORE.config, "net0": value}


@rows(
    ("changes", "drift", "done"),
    [
        ({}, [], []),
        ({"config": {**BEFORE.config, "memory": "1024"}}, [], [{"memory": "1024"}]),
        ({}, ["memory"], [{"memory": "512"}]),
        ({"config": {"memory": "512"}}, [], [{"net0": None}]),
        ({"secret_config": {"cipassword": "x"}}, [], [("put", {"cipassword": "x"})]),
        (LARGER, [], [16]),
        ({"config": net("virtio,bridge=vmbr1")}, [], [{"net0": f"virtio={MAC},bridge=vmbr1"}]),
        ({"config": net("e1000")}, [], [{"net0": f"e1000={MAC}"}]),
        ({"config": net("virtio=AA:00:00:00:00:01")}, [], [{"net0": "virtio=AA:00:00:00:00:01"}]),
        ({"config": net("virtio,macaddr=AA:00:00:00:00:01")}, [], [{"net0": "virtio,macaddr=AA:00:00:00:00:01"}]),
        ({"config": {**BEFORE.config, "net1": "virtio"}}, [], [{"net1": "virtio"}]),
    ],
)  # fmt: skip
def test_what_differs_is_changed_and_no_more(changes: dict[str, Any], drift: list[str], done: list[Any]) -> None:
    work = Work(config={**CONFIG, "description": BEFORE.mark})
    work.change(dataclasses.replace(BEFORE, **changes), BEFORE, drift)
    assert work.done == done


def test_what_is_gone_already_is_not_taken_away() -> None:
    work = Work(config={**CONFIG, "description": BEFORE.mark})
    work.change(BEFORE, dataclasses.replace(BEFORE, config={**BEFORE.config, "tags": "x", "numa": "1"}), [])
    assert work.done == [{"tags": None}]


PROGRAMS = {"args": "-device x", "hookscript": "local:snippets/x"}
WITH_PROGRAMS = dataclasses.replace(BEFORE, config={**BEFORE.config, **PROGRAMS})


@rows(
    ("now", "before", "drift"),
    [
        (WITH_PROGRAMS, BEFORE, []),
        (BEFORE, WITH_PROGRAMS, []),
        (WITH_PROGRAMS, dataclasses.replace(BEFORE, config={**BEFORE.config, "args": "-x"}), ["args", "hookscript"]),
    ],
)
def test_what_runs_programs_on_the_host_stays_as_the_guest_has_it(now: Any, before: Any, drift: list[str]) -> None:
    config = {**CONFIG, "args": "-mine", "description": BEFORE.mark}
    work = Work(config=config)
    work.change(now, before, drift)
    work._finish(
        dataclasses.replace(now, config={key: config.get(key, value) for key, value in now.config.items()}), {}
    )
    assert not {*PROGRAMS} & {key for one in work.done for key in (one[1] if isinstance(one, tuple) else one)}
    written = Guest.Outputs(instance="", written={"args": "-device x"})
    assert work.read(now, written).drift == []


def test_what_runs_programs_is_named_also_where_it_comes_to_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("homelab.guest.work.tell", said.append)
    before = {**dataclasses.asdict(BEFORE), **dataclasses.asdict(Guest.Outputs(instance=""))}
    Work().foretell(before, dataclasses.asdict(WITH_PROGRAMS))
    assert all(f"{key}: as it is, only a person at the host changes it" in "".join(said) for key in PROGRAMS)


def test_a_guest_isnt_made_with_what_runs_programs_on_the_host() -> None:
    class Absent(Work):
        def config(self, inputs: Any) -> dict[str, str]:
            raise error_of(NotThereError)

    work = Absent()
    with pytest.raises(SeveralErrors) as caught:
        work.make(WITH_PROGRAMS, "0" * 16)
    assert [error.wanted for error in caught.value.errors] == [f"vms.a.create without {key}" for key in PROGRAMS]
    assert work.done == []


WITH_DISKS = dataclasses.replace(
    BEFORE,
    config={
        **BEFORE.config,
        "scsi0": "local:0,import-from=local:import/a.qcow2",
        "efidisk0": "local:1",
        "storage": "a",
    },
)


@rows(
    "changes",
    [
        {"scsi0": "fast:0,import-from=local:import/a.qcow2"},
        {"scsi0": "local:0,import-from=local:import/b.qcow2"},
        {"scsi0": None},
        {"scsi2": "local-lvm:100"},
        {"efidisk0": "local:1,efitype=4m"},
        {"storage": "b"},
    ],
)
def test_what_only_a_new_disk_could_have_is_refused(changes: dict[str, Any]) -> None:
    before = dataclasses.replace(WITH_DISKS, config={**WITH_DISKS.config, "scsi2": "/dev/disk/by-id/ata-X"})
    Work().require_same_disks(dataclasses.replace(before, **LARGER), before)
    config = {key: value for key, value in {**before.config, **changes}.items() if value is not None}
    with pytest.raises(HomelabError, match="what is on the disk would be lost"):
        Work().require_same_disks(dataclasses.replace(before, config=config), before)


def test_a_preview_says_what_is_changed_in_a_guest_that_was_made_here_and_refuses_another_disk() -> None:

    def told_ahead(before: Any, inputs: Any, drift: list[str]) -> str:
        with io.StringIO() as out, contextlib.redirect_stdout(out):
            state = {**dataclasses.asdict(before), "instance": "0" * 16, "written": before.config, "drift": drift}
            Work().foretell(state, dataclasses.asdict(inputs))
            return out.getvalue()

    secret = dataclasses.replace(BEFORE, secret_config={"cipassword": "old"})
    config = {**{key: value for key, value in BEFORE.config.items() if key != "net0"}, "cores": "4"}
    wanted = dataclasses.replace(secret, config=config, size=12, secret_config={"cipassword": "hidden"})
    assert told_ahead(secret, wanted, ["memory"]) == (
        "a: VM 103: cores: not there -> 4, memory: changed by hand -> 512, net0: virtio,bridge=vmbr0 -> not there,"
        " cipassword: set anew, for its next start, size: 12 GiB\n"
        "a: VM 103, if it runs, is shut down and started for what Proxmox VE can't change meanwhile\n"
    )
    larger = dataclasses.replace(BEFORE, size=12)
    assert told_ahead(BEFORE, larger, []) == "a: VM 103: size: 12 GiB\n"
    container = dataclasses.replace(secret, guest_kind="lxc", size=None)
    assert told_ahead(container, dataclasses.replace(container, secret_config={"password": "hidden"}), []) == ""
    assert told_ahead(BEFORE, BEFORE, []) == ""
    with pytest.raises(HomelabError, match="what is on the disk would be lost"):
        told_ahead(BEFORE, dataclasses.replace(BEFORE, size=1), [])


@pytest.mark.parametrize("changes", [{"size": 4}, {"clone": 9}])
def test_a_disk_that_shrinks_and_another_template_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(HomelabError, match="what is on the disk would be lost"):
        Work().require_same_disks(dataclasses.replace(BEFORE, **changes), BEFORE)


@pytest.mark.parametrize("changes", [{"scsi1": "local:8"}, {"sata0": "none,media=cdrom"}, {"sata0": None}])
def test_a_further_disk_and_another_cd_are_no_other_disk(changes: dict[str, Any]) -> None:
    before = dataclasses.replace(WITH_DISKS, config={**WITH_DISKS.config, "sata0": "local:iso/a.iso,media=cdrom"})
    config = {key: value for key, value in {**before.config, **changes}.items() if value is not None}
    Work().require_same_disks(dataclasses.replace(before, config=config), before)


@pytest.mark.parametrize(("size", "grows"), [("3584M", True), ("8G", False), ("1T", False), (None, True)])
def test_a_disk_that_is_large_enough_stays_as_it_is(size: str | None, grows: bool) -> None:
    """Of one that isn't there, Proxmox VE says so."""
    work = Work(config={**CONFIG, "scsi0": f"local:vm-103-disk-0,size={size}"} if size else CONFIG)
    tasks = list[Any]()
    work._task = lambda *_, **options: tasks.append(options)  # type: ignore[method-assign]
    GuestWork._grow(work, BEFORE)
    assert tasks == [{"disk": "scsi0", "size": "8G"}] * grows


def test_a_run_that_finishes_a_guest_makes_no_disk_of_it_again() -> None:
    disks = {
        "scsi0": "local:vm-103-disk-0",
        "efidisk0": "local:vm-103-disk-1,efitype=4m",
        "net0": f"virtio={MAC},bridge=vmbr0",
    }
    work = Work(config={**disks, "memory": "512", "description": f"{BEFORE.mark} {'0' * 16}"})
    inputs = dataclasses.replace(WITH_DISKS, size=None, config={**WITH_DISKS.config, "sata0": "none,media=cdrom"})
    work.make(inputs, "f" * 16)
    assert work.done == [("put", {"sata0": "none,media=cdrom", "description": f"{BEFORE.mark} {'f' * 16}"}), None]


def test_a_disk_that_is_there_is_not_made_again() -> None:
    work = Work(config={**CONFIG, "scsi1": "local:vm-103-disk-1,size=8G", "description": BEFORE.mark})
    work.change(dataclasses.replace(BEFORE, config={**BEFORE.config, "scsi1": "local:8"}), BEFORE, [])
    assert work.done == []


def test_what_is_compared_later_is_what_was_written_without_disks_cds_and_hookscripts() -> None:
    config = {
        **CONFIG,
        "scsi0": "local:vm-103-disk-0",
        "sata0": "none,media=cdrom",
        "hookscript": "a",
        "mp0": "/a,mp=/b",
    }
    inputs = dataclasses.replace(BEFORE, config={**config, "mp1": "local:8,mp=/c"})
    assert written_of({**config, "name": "theirs"}, inputs, inputs.config) == {**CONFIG, "mp0": "/a,mp=/b"}


def test_a_containers_change_goes_to_the_api_with_what_it_had_of_its_network_card() -> None:
    """What Proxmox VE has added: its hardware address, and of an OCI image's container, that the host sets the network up."""
    net = "name=eth0,bridge=vmbr0,gw=192.168.0.1,hwaddr=BC:24:11:AA:BB:CC,ip=192.168.0.50/24,host-managed=1,type=veth"
    before = dataclasses.replace(
        BEFORE, guest_kind="lxc", config={"net0": "name=eth0,bridge=vmbr0", "swap": "0", "cores": "1"}
    )
    after = dataclasses.replace(before, config={"net0": "name=eth0,bridge=vmbr1,ip=dhcp", "cores": "2"})
    work = Work(config={"net0": net, "swap": "0", "cores": "1", "description": BEFORE.mark})
    assert work.change(after, before, []) == ["net0", "cores", "swap"]
    net = "name=eth0,bridge=vmbr1,ip=dhcp,hwaddr=BC:24:11:AA:BB:CC,host-managed=1"
    assert work.done == [("put", {"net0": net, "cores": "2", "delete": "swap"})]


MARKED = {**CONFIG, "net0": f"virtio={MAC},bridge=vmbr0", "description": f"{BEFORE.mark} {'0' * 16}"}


@rows(
    ("config", "done"),
    [
        (MARKED, {"description": f"{BEFORE.mark} {'f' * 16}"}),
        ({**MARKED, "memory": "1024"}, {"memory": "512", "description": f"{BEFORE.mark} {'f' * 16}"}),
        ({"description": MARKED["description"]}, {**BEFORE.config, "description": f"{BEFORE.mark} {'f' * 16}"}),
        ({**MARKED, "lock": "clone"}, None),
        (CONFIG, None),
        ({**CONFIG, "description": f"{BEFORE.mark}b"}, None),
    ],
)
def test_one_of_its_id_is_finished_only_if_this_stack_began_it(config: dict[str, str], done: Any) -> None:
    work = Work(config=config)
    if done is None:
        with pytest.raises(HomelabError, match="nothing was changed"):
            work.make(BEFORE, "f" * 16)
        assert work.done == []
    else:
        work.make(BEFORE, "f" * 16)
        assert work.done == [("put", done), 8]
