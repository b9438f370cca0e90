"""A snapshot or backup of an adopted guest before its first change: one, whole, and there before anything else; or a clear refusal."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from homelab import rights
from homelab.errors import HomelabError
from homelab.provider import safety_copy
from homelab.provider.container_probe import ContainerProbeWork
from homelab.provider.safety_copy import SafetyCopyWork
from homelab.provider.vm_record import VmRecordWork
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox import safety
from homelab.resources.base import Boot, ShutdownInputs
from homelab.resources.container_probe import ContainerProbe
from homelab.resources.safety_copy import SafetyCopy
from homelab.resources.vm_record import VmRecord
from homelab.settings import Container, Vm
from lab import Lab
from lab.client import LogMark
from tests.lab.test_proxmox_api import host_of

NODE = "pve"
VM, CONTAINER = ("qemu", 103), ("lxc", 200)
SNAPSHOT, BACKUP = {"safety": "snapshot"}, {"safety": "backup", "storage": "local"}


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start("bound-by-hand", state=tmp_path_factory.mktemp("copies") / "lab") as started:
        yield started


@pytest.fixture
def lab(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    shared_lab.run("cat >$ROOT/etc/pve/nodes/pve/lxc/200.conf", stdin=A_CONTAINER)
    yield shared_lab
    shared_lab.reset()


A_CONTAINER = "arch: amd64\nhostname: files\nmemory: 512\nostype: debian\nrootfs: local-lvm:vm-200-disk-0,size=8G\nunprivileged: 1\n"
# A directory's image in raw format has no snapshots.
A_RAW_FILE = "pvesh set /storage/local --content iso,backup,images; qm set 103 --scsi1 local:4"


class Copy:
    """The copy of one guest of a stack, as the engine has it made and given up."""

    def __init__(self, lab: Lab, guest: tuple[str, int], safety: str, storage: str = "") -> None:
        self.lab, (self.kind, self.vmid) = lab, guest
        about = host_of(lab).model_dump(mode="json", by_alias=True)
        about["api"]["tokenSecret"] = lab.api["tokenSecret"]
        self.work = SafetyCopyWork({"hosts": json.dumps({NODE: about}), "allowPlainSecrets": "true"})
        self.inputs = SafetyCopy.Inputs(
            host=NODE,
            node=NODE,
            guest="mine",
            guest_kind=self.kind,
            vmid=self.vmid,
            safety=safety,
            storage=storage,
            identity="this one",
        )

    def up(self) -> str:
        return self.work.create(self.inputs).copy

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        api = api_module.Api(host_of(self.lab), NODE)
        rows = api.get(f"nodes/{NODE}/{self.kind}/{self.vmid}/snapshot", "snapshots")
        return [row for row in rows if row["name"] != "current"]

    @property
    def backups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api_module.Api(host_of(self.lab), NODE).get(
            f"nodes/{NODE}/storage/local/content", "backups", content="backup"
        )
        return found

    @property
    def noted(self) -> bool:
        return (self.lab.root / f"var/lib/homelab/ledger/safety/{self.vmid}").exists()

    def renamed(self, guest: str) -> Copy:
        """The guest under another name in the settings: a resource of its own."""
        other = copy.copy(self)
        other.inputs = dataclasses.replace(self.inputs, guest=guest)
        return other

    def only_begun(self) -> None:
        """The note as a run has left it that was killed before its copy was made."""
        path = self.lab.root / f"var/lib/homelab/ledger/safety/{self.vmid}"
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "copy"})
        )

    def refused(self) -> HomelabError:
        with pytest.raises(HomelabError) as raised:
            self.up()
        assert raised.value.why and raised.value.next
        return raised.value


def asked(lab: Lab, mark: LogMark) -> list[str]:
    """What was asked of the API that makes a copy."""
    calls = [call for call in lab.api_calls(mark) if call["method"] == "POST"]
    return [call["path"].rpartition("/")[2] for call in calls if call["path"].endswith(("/snapshot", "/vzdump"))]


@pytest.mark.parametrize("guest", [VM, CONTAINER], ids=["vm", "container"])
def test_a_snapshot_is_made_once_without_ram_and_stays_with_advice(
    lab: Lab, guest: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(safety_copy, "tell", said.append)
    made, mark = Copy(lab, guest, **SNAPSHOT), lab.mark()
    name = made.up()
    assert [row["name"] for row in made.snapshots] == [name] and not made.snapshots[0].get("vmstate")
    # The state was lost, or the run was killed before the engine knew.
    assert made.up() == name and asked(lab, mark) == ["snapshot"]
    made.work.delete(made.inputs, SafetyCopy.Outputs(copy=name))
    program = "qm" if guest is VM else "pct"
    assert (
        f"`{program} rollback {guest[1]} {name}`" in said[-1]
        and f"`{program} delsnapshot {guest[1]} {name}`" in said[-1]
    )
    assert [row["name"] for row in made.snapshots] == [name] and not made.noted
    # What it advises is the way back.
    for command in (f"rollback {guest[1]} {name}", f"delsnapshot {guest[1]} {name}"):
        assert lab.run(f"{program} {command}").returncode == 0
    assert made.snapshots == []


@pytest.mark.parametrize("guest", [VM, CONTAINER], ids=["vm", "container"])
def test_a_backup_is_made_once_protected_and_stays_with_advice(
    lab: Lab, guest: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(safety_copy, "tell", said.append)
    made, mark = Copy(lab, guest, **BACKUP), lab.mark()
    volume = made.up()
    assert [(row["volid"], row["protected"]) for row in made.backups] == [(volume, 1)]
    assert made.up() == volume and asked(lab, mark) == ["vzdump"]
    made.work.delete(made.inputs, SafetyCopy.Outputs(copy=volume))
    restores = f"`qmrestore {volume} 103 --force`" if guest is VM else f"`pct restore 200 {volume} --force`"
    assert restores in said[-1] and f"`pvesm free {volume}`" in said[-1]
    unprotecting = said[-1].partition("`pvesh set ")[2].partition("`")[0]
    path = f"/nodes/{NODE}/storage/local/content/{volume}"
    assert lab.run(f"pvesh delete {path}").stderr and made.backups
    lab.run(f"pvesh set {unprotecting}")
    lab.run(f"pvesh delete {path}")
    assert made.backups == [] and not made.noted


@pytest.mark.parametrize(("way", "fault"), [(SNAPSHOT, "snapshot-seconds"), (BACKUP, "backup-seconds")])
def test_a_run_that_was_killed_meanwhile_is_waited_for_and_no_second_one_is_made(
    lab: Lab, way: dict[str, str], fault: str
) -> None:
    lab.fault(fault, 1.5)
    made, mark = Copy(lab, VM, **way), lab.mark()
    # As far as a run comes before it is killed: it has noted the copy, and the node makes it.
    api = api_module.Api(host_of(lab), NODE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_module.Api, "task", killed)
        with pytest.raises(KeyboardInterrupt):
            made.up()
    assert api.tasks(source="active", vmid=103)
    assert made.up()
    assert len(made.snapshots) + len(made.backups) == 1 and len(asked(lab, mark)) == 1
    assert not any(row.get("snapstate") for row in made.snapshots)


def test_a_snapshot_that_was_never_finished_is_named_with_what_frees_the_guest(lab: Lab) -> None:
    made = Copy(lab, VM, **SNAPSHOT)
    name = made.up()
    path = lab.root / "etc/pve/nodes/pve/qemu-server/103.conf"
    text = path.read_text().replace(f"[{name}]\n", f"[{name}]\nsnapstate: prepare\n")
    path.write_text("lock: snapshot\n" + text)
    made.only_begun()
    error = made.refused()
    assert "never finished" in error.found
    for command in error.next.split("`")[1:4:2]:
        assert lab.run(command).returncode == 0
    assert made.up() == name and not made.snapshots[0].get("snapstate")


@pytest.mark.parametrize(
    ("guest", "before", "why"),
    [
        (VM, A_RAW_FILE, "the storage of at least one disk has no snapshots"),
        (CONTAINER, "printf 'mp0: /srv/films,mp=/films\\n' >>$ROOT/etc/pve/nodes/pve/lxc/200.conf", "(/srv/films) has no snapshots"),
    ],
    ids=["a raw file", "a bind mount"],
)  # fmt: skip
def test_a_guest_that_can_have_no_snapshot_is_refused_before_anything_is_asked(
    lab: Lab, guest: tuple[str, int], before: str, why: str
) -> None:
    lab.run(before)
    mark = lab.mark()
    made = Copy(lab, guest, **SNAPSHOT)
    error = made.refused()
    assert why in error.why and "safety to backup" in error.next
    assert asked(lab, mark) == []
    assert Copy(lab, guest, **BACKUP).up()


@pytest.mark.parametrize("storage", ["local-lvm", "nowhere"])
def test_a_storage_that_takes_no_backups_is_refused_with_those_that_do(lab: Lab, storage: str) -> None:
    with pytest.raises(HomelabError, match="storages for backups: local"):
        api = api_module.Api(host_of(lab), NODE)
        error = safety.GuestCopies(api, "vms.mine", "qemu", 103, print).against_backup(storage)
        assert error is not None
        raise error


def test_a_backup_that_fails_says_why_and_the_guest_is_free_again(lab: Lab) -> None:
    lab.fault("disk-full", True)
    made = Copy(lab, VM, **BACKUP)
    assert "write error" in made.refused().found
    assert made.backups == []
    lab.fault("disk-full", False)
    assert made.up()


def test_a_locked_guest_is_left_alone(lab: Lab) -> None:
    lab.run("qm set 103 --lock migrate")
    assert "locked (migrate)" in Copy(lab, VM, **SNAPSHOT).refused().found


def test_another_kind_of_copy_is_made_beside_the_one_that_is_there(lab: Lab) -> None:
    made = Copy(lab, VM, **SNAPSHOT)
    had, outputs = made.inputs, SafetyCopy.Outputs(copy=made.up())
    other = made.work.update(dataclasses.replace(had, safety="backup", storage="local"), had, outputs)
    assert other.copy.startswith("local:backup/") and len(made.snapshots) == 1 and len(made.backups) == 1
    assert made.work.update(had, dataclasses.replace(had, guest="other"), outputs) == outputs


def test_a_stack_that_comes_back_later_has_a_copy_of_that_time(lab: Lab) -> None:
    made = Copy(lab, VM, **SNAPSHOT)
    first = made.up()
    made.work.delete(made.inputs, SafetyCopy.Outputs(copy=first))
    assert made.up() != first and len(made.snapshots) == 2


@pytest.mark.parametrize("way", [SNAPSHOT, BACKUP], ids=["snapshot", "backup"])
def test_another_name_in_the_settings_neither_makes_nor_forgets_a_copy(
    lab: Lab, way: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(safety_copy, "tell", said.append)
    old = Copy(lab, VM, **way)
    name = old.up()
    if way is SNAPSHOT:
        lab.run(A_RAW_FILE)  # since then it can't have another one
    new = old.renamed("other")
    assert new.up() == name
    # The engine deletes what has the old name after it has made what has the new one.
    old.work.delete(old.inputs, SafetyCopy.Outputs(copy=name))
    assert new.noted and not any("stays" in one for one in said)
    new.work.delete(new.inputs, SafetyCopy.Outputs(copy=name))
    assert not new.noted


@pytest.mark.parametrize("known", ["state", "note"])
def test_another_vm_of_that_id_has_a_backup_of_its_own(lab: Lab, known: str) -> None:
    made = Copy(lab, VM, **BACKUP)
    first = made.up()
    other, mark = dataclasses.replace(made.inputs, identity="another one"), lab.mark()
    if known == "state":
        made.work.update(other, made.inputs, SafetyCopy.Outputs(copy=first))
    else:
        made.work.create(other)
    assert asked(lab, mark) == ["vzdump"]


def test_a_state_of_before_that_knows_no_identity_goes_on(lab: Lab) -> None:
    made, mark = Copy(lab, VM, **BACKUP), lab.mark()
    before, had = dataclasses.replace(made.inputs, identity=""), SafetyCopy.Outputs(copy="local:backup/of-before")
    assert made.work.update(made.inputs, before, had) == had and asked(lab, mark) == []


def test_a_container_with_a_volume_that_no_backup_has_is_refused(lab: Lab) -> None:
    made, mark = Copy(lab, CONTAINER, **BACKUP), lab.mark()
    conf = "$ROOT/etc/pve/nodes/pve/lxc/200.conf"
    lab.run(f"printf 'mp0: local-lvm:vm-200-disk-1,mp=/data,size=4G\\n' >>{conf}")
    assert "mp0 (/data, local-lvm:vm-200-disk-1)" in made.refused().found and asked(lab, mark) == []
    about = {"host": NODE, "ctid": 200, "gpuAssignment": "0", "safety": "backup", "backupStorage": "local"}
    found = safety.check(api_module.Api(host_of(lab), NODE), {"containers.mine": Container.model_validate(about)})
    assert "to restore the container from it would remove" in found[0].why
    lab.run(f"sed -i 's/^mp0:.*/&,backup=1/' {conf}")
    assert made.up()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("mp0: local-lvm:vm-200-disk-1,mp=/data,size=4G", "excluding volume mount point mp0 ('/data') from backup (disabled)"),
        ("mp0: local-lvm:vm-200-disk-1,mp=/data,backup=1", "including mount point mp0 ('/data') in backup"),
        ("mp0: /srv,mp=/srv", "excluding bind mount point mp0 ('/srv') from backup (not a volume)"),
    ],
)  # fmt: skip
def test_the_lab_says_of_each_mount_point_whether_a_backup_has_it(lab: Lab, option: str, line: str) -> None:
    lab.run("cat >>$ROOT/etc/pve/nodes/pve/lxc/200.conf", stdin=f"{option}\n")
    api = api_module.Api(host_of(lab), NODE)
    api.carry_out("post", f"nodes/{NODE}/vzdump", "a backup", 60, print, kinds=("vzdump",), vmid="200", storage="local")
    task = next(one for one in api.tasks(typefilter="vzdump", vmid=200))
    assert f"INFO: {line}" in api.task_log(task["upid"])


@pytest.mark.parametrize("guest", [VM, CONTAINER], ids=["vm", "container"])
def test_what_a_failed_run_has_noted_goes_with_the_guests_record(lab: Lab, guest: tuple[str, int]) -> None:
    """A copy that was never made isn't in the state: no SafetyCopy is ever deleted."""
    lab.fault("disk-full", True)
    made = Copy(lab, guest, **BACKUP)
    made.refused()
    assert made.noted
    for name, left in (("another", True), ("mine", False)):
        record_gone(made, name)
        assert made.noted is left


def record_gone(made: Copy, name: str) -> None:
    """The guest leaves the stack, in which it has that name."""
    texts, boot = made.work.stack.texts, Boot(id="b", stopped=[], at=0)
    if made.kind == "lxc":
        probe = ContainerProbe.Inputs(
            host=NODE,
            node=NODE,
            container=name,
            ctid=made.vmid,
            settings="",
            power="keep",
            gpus={},
            boot=boot,
            instance="",
            copied=True,
            shutdown=ShutdownInputs(timeout=1, otherwise="fail"),
        )
        seen = ContainerProbe.Outputs(
            minors=[],
            functions=[],
            guest_name="",
            resume=False,
            generation=0,
            stale=False,
            shared={},
            identity="",
            again=0,
        )
        ContainerProbeWork(texts).delete(probe, seen)
        return
    record = VmRecord.Inputs(
        host=NODE, node=NODE, vm=name, vmid=made.vmid, shutdown=ShutdownInputs(timeout=1, otherwise="fail"), cards=[],
        display="keep", shared_onboot=False, power="keep", instance="", goes_away=False, boot=boot, copied=True,
    )  # fmt: skip
    VmRecordWork(texts).delete(
        record, VmRecord.Outputs(record={}, restore={}, running=False, generation=0, guest_name="")
    )


def test_what_cannot_be_made_is_refused_by_a_preview(lab: Lab) -> None:
    lab.run(A_RAW_FILE)
    about = {"host": NODE, "vmid": 103, "gpus": ["rtx5090"]}
    api = api_module.Api(host_of(lab), NODE)
    found = safety.check(api, {"vms.mine": Vm.model_validate({**about, **SNAPSHOT})})
    found += safety.check(
        api, {"vms.mine": Vm.model_validate({**about, "safety": "backup", "backupStorage": "local-lvm"})}
    )
    assert [error.wanted.partition(" (")[2].rstrip(")") for error in found] == [
        "vms.mine.safety: snapshot",
        "vms.mine.backupStorage",
    ]
    assert safety.check(api, {"vms.mine": Vm.model_validate(about)}) == []


@pytest.mark.parametrize("way", [SNAPSHOT, BACKUP], ids=["snapshot", "backup"])
def test_a_users_missing_rights_are_those_that_the_node_asks_for(lab: Lab, way: dict[str, str]) -> None:
    needs = rights.of_safety(103, way["safety"], way.get("storage"))
    lab.run("pveum user add c@pve; pveum user token add c@pve up --privsep 0 --output-format json >$ROOT/root/token")
    secret = json.loads((lab.root / "root/token").read_text())["value"]
    for number, (path, names) in enumerate(needs.items()):
        lab.run(
            f"pveum role add R{number} --privs '{' '.join(sorted(names))}'; pveum acl modify {path} --users c@pve --roles R{number}"
        )
    host = host_of(lab, token="c@pve!up", tokenSecret=secret)

    def carried_out(name: str) -> None:
        copies = safety.GuestCopies(api_module.Api(host, NODE), "vms.mine", "qemu", 103, lambda _: None)
        if way is SNAPSHOT:
            copies.snapshot(name, "a test")
        else:
            assert copies.against_backup("local") is None
            copies.backup(name, "a test", "local")

    carried_out("whole")
    for number, names in enumerate(needs.values()):
        for name in sorted(names):
            lab.run(f"pveum role modify R{number} --privs '{' '.join(sorted(names - {name}))}'")
            with pytest.raises((HomelabError, AssertionError)):
                carried_out(f"without-{name.replace('.', '-')}")
            lab.run(f"pveum role modify R{number} --privs '{' '.join(sorted(names))}'")
