"""Files that Proxmox VE downloads for guests: downloaded once, given back, and nothing left behind however it goes wrong."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.host.resource import HostProbe
from homelab.host.work import HostProbeWork
from homelab.remote import ledger, ssh
from homelab.remote.proxmox import api as api_module
from homelab.remote.proxmox import files as api_files
from homelab.settings import Container, Download, Vm
from homelab.storage import work as storage_file
from homelab.storage.resource import StorageFile
from homelab.storage.work import StorageFileWork
from lab import Lab
from tests import forked_agent, sampling
from tests.lab.stack_kit import NODE, PROBED, as_text, host_of

NOBLE = {"url": "https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img"}
VIRTIO = {"url": "https://fedorapeople.org/groups/virt/virtio-win/direct-downloads/stable-virtio/virtio-win.iso"}
CD, IMAGE = "virtio-win.iso", "noble.qcow2"
FOLDERS = {"import": "import", "iso": "template/iso"}


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(api_module, "POLL_SECONDS", (0.02, 0.05))
    forked_agent.in_place_of_what_is_sent(monkeypatch, lab)
    allow(lab, "iso,vztmpl,backup,import")
    return lab


def allow(lab: Lab, content: str) -> None:
    lab.run(f"pvesh set /storage/local --content {content}")


class Stack:
    """One download of a stack, as the engine has it made, changed and removed."""

    def __init__(self, lab: Lab, about: dict[str, Any], name: str = CD, **timeouts: int) -> None:
        self.lab, self.name = lab, name
        self.host = as_text(host_of(lab))
        self.host["timeouts"] |= timeouts
        self.set(about)

    def set(self, about: dict[str, Any]) -> None:
        self.download = Download.model_validate(about)
        self.host["downloads"] = {self.name: about}
        texts = {"hosts": json.dumps({NODE: self.host})}
        self.work = StorageFileWork(texts)
        self.inputs = StorageFile.inputs_of(NODE, NODE, self.name, self.download)

    def up(self) -> StorageFile.Outputs:
        return self.work.create(self.inputs)

    @property
    def folder(self) -> list[str]:
        """What lies where the file belongs; also what is only half there."""
        folder = self.lab.root / "var/lib/vz" / FOLDERS[self.inputs.volume.split(":")[1].split("/")[0]]
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    @property
    def notes(self) -> list[str]:
        folder = self.lab.root / "var/lib/homelab/ledger/file"
        return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []

    def refused(self) -> HomelabError:
        with pytest.raises(HomelabError) as raised:
            self.up()
        assert raised.value.next and raised.value.why
        return raised.value


@pytest.mark.parametrize(("about", "name"), [(NOBLE, IMAGE), (VIRTIO, CD)], ids=["image", "iso"])
def test_a_file_is_downloaded_once_and_given_back(lab: Lab, about: dict[str, Any], name: str) -> None:
    stack = Stack(lab, about, name)
    outputs = stack.up()
    assert outputs.made and stack.folder == [name] and len(stack.notes) == 1
    stack.work.delete(stack.inputs, outputs)
    assert stack.folder == [] and stack.notes == []


def test_another_file_of_that_name_is_refused_where_the_settings_have_a_checksum(lab: Lab) -> None:
    lab.run(
        "mkdir -p $HOMELAB_ROOT/var/lib/vz/template/iso; echo mine >$HOMELAB_ROOT/var/lib/vz/template/iso/virtio-win.iso"
    )
    stack = Stack(lab, {**VIRTIO, "checksum": "sha256:" + "a" * 64})
    error = stack.refused()
    assert "checksum mismatch" in error.found and "a file that was there is not touched" in error.why
    assert (lab.root / "var/lib/vz/template/iso/virtio-win.iso").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("fault", "found"),
    sampling.sample(
        [
            ({"download-breaks": "virtio-win"}, "download failed"),
            ({"download-corrupt": "virtio-win"}, "checksum mismatch"),
            ({"disk-full": "host"}, "No space left"),
            ({"apt-offline": "fedorapeople"}, "download failed"),
            ({"task-fails": "download=received interrupt"}, "received interrupt"),
        ],
        2,
        "downloads",
    ),
    ids=lambda fault: next(iter(fault)) if isinstance(fault, dict) else "",
)
def test_a_download_that_fails_leaves_nothing_behind(lab: Lab, fault: dict[str, Any], found: str) -> None:
    [(name, value)] = fault.items()
    lab.fault(name, value)
    content = b"the lab's stand-in of virtio-win's CD\n"
    stack = Stack(lab, {**VIRTIO, "checksum": "sha256:" + hashlib.sha256(content).hexdigest()})
    error = stack.refused()
    assert found in error.found and "nothing is kept of a download that fails" in error.why
    assert stack.folder == [] and stack.notes == []


def test_a_file_that_its_maker_no_longer_has_is_named(lab: Lab) -> None:
    stack = Stack(lab, {"url": "https://cloud-images.ubuntu.com/noble/current/gone.iso"})
    error = stack.refused()
    assert "404" in error.found and "hosts.pve.downloads.virtio-win.iso" in error.next


def test_a_download_that_takes_too_long_goes_on_and_is_waited_for_by_the_next_run(lab: Lab) -> None:
    lab.fault("download-seconds", 4)
    error = Stack(lab, VIRTIO, create=1).refused()
    assert "still runs after 1 seconds" in error.found and "timeouts.create" in error.next
    stack = Stack(lab, VIRTIO)
    assert stack.up().made and stack.folder == ["virtio-win.iso"]


def test_a_run_that_was_killed_during_the_download_goes_on_waiting_for_it(lab: Lab) -> None:
    lab.fault("download-seconds", 2)
    stack = Stack(lab, VIRTIO)
    mark = lab.mark()
    # As far as a run comes before it is killed: it has noted the file as its own, and the node downloads it.
    ledger.note(
        ssh.Session(host_of(lab)), ledger.of_file(NODE, stack.inputs.volume), storage_file._identity(stack.inputs)
    )
    about = {"content": "iso", "filename": stack.name, "url": stack.download.url}
    api_module.Api(host_of(lab), NODE).post(f"nodes/{NODE}/storage/local/download-url", "a download", **about)
    outputs = stack.up()
    assert outputs.made and stack.folder == ["virtio-win.iso"]
    assert sum(call["path"].endswith("/download-url") for call in lab.api_calls(mark)) == 1


def test_what_somebody_else_is_downloading_is_waited_for_and_stays(lab: Lab) -> None:
    lab.fault("download-seconds", 2)
    stack = Stack(lab, VIRTIO)
    about = {"content": "iso", "filename": stack.name, "url": stack.download.url}
    api_module.Api(host_of(lab), NODE).post(f"nodes/{NODE}/storage/local/download-url", "a download", **about)
    outputs = stack.up()
    stack.work.delete(stack.inputs, outputs)
    assert not outputs.made and stack.folder == ["virtio-win.iso"] and stack.notes == []


@pytest.mark.parametrize("seconds", [0, 600], ids=["it is there meanwhile", "it still comes"])
def test_a_destroy_after_a_run_that_was_killed_during_a_download_leaves_neither_file_nor_note(
    lab: Lab, seconds: int
) -> None:
    lab.fault("download-seconds", seconds)
    stack = Stack(lab, VIRTIO)
    lab.run("mkdir -p $HOMELAB_ROOT/var/lib/vz/template/iso; touch $HOMELAB_ROOT/var/lib/vz/template/iso/mine.iso")
    ledger.note(
        ssh.Session(host_of(lab)), ledger.of_file(NODE, stack.inputs.volume), storage_file._identity(stack.inputs)
    )
    api = api_module.Api(host_of(lab), NODE)
    about = {"content": "iso", "filename": stack.name, "url": stack.download.url}
    upid = api.post(f"nodes/{NODE}/storage/local/download-url", "a download", **about)
    if not seconds:
        api.task(upid, "a download", 10, lambda _: None)
        assert "virtio-win.iso" in stack.folder
    # The state knows nothing of the file: the host's probe is the last that a destroy deletes.
    HostProbeWork(stack.work.stack.texts).delete(HostProbe.Inputs(host=NODE, settings=""), PROBED)
    assert stack.folder == ["mine.iso"] and stack.notes == []
    assert not api.get(f"nodes/{NODE}/tasks", "", source="active")


def test_a_destroy_leaves_no_empty_file_of_mappings(lab: Lab) -> None:
    mappings = lab.root / "etc/pve/mapping/pci.cfg"
    mappings.parent.mkdir(parents=True, exist_ok=True)
    for text in ("gpu\n\tmap node=pve,path=0000:01:00,id=10de:2b85\n", ""):
        mappings.write_text(text)
        HostProbeWork(Stack(lab, VIRTIO).work.stack.texts).delete(HostProbe.Inputs(host=NODE, settings=""), PROBED)
        assert mappings.exists() is bool(text)


def test_a_file_that_a_guest_uses_stays_with_a_word(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(lab, VIRTIO)
    outputs = stack.up()
    lab.run("qm set 103 --sata3 local:iso/virtio-win.iso,media=cdrom")
    said: list[str] = []
    monkeypatch.setattr(storage_file, "tell", said.append)
    stack.work.delete(stack.inputs, outputs)
    assert stack.folder == ["virtio-win.iso"] and stack.notes == []
    assert "stays: VM 103 on pve uses it" in said[0] and "pvesm free local:iso/virtio-win.iso" in said[0]


def test_a_file_that_somebody_removed_is_drift_and_comes_back(lab: Lab) -> None:
    stack = Stack(lab, VIRTIO)
    outputs = stack.up()
    (lab.root / "var/lib/vz/template/iso/virtio-win.iso").unlink()
    found = stack.work.read(stack.inputs, outputs)
    assert found.drift == ["local:iso/virtio-win.iso is gone"]
    again = stack.work.update(stack.inputs, stack.inputs, found)
    assert again.made and again.drift == [] and stack.folder == ["virtio-win.iso"]


def test_another_address_of_the_same_file_name_replaces_what_is_ours(lab: Lab) -> None:
    stack = Stack(lab, VIRTIO, "a.iso")
    outputs, had = stack.up(), stack.inputs
    stack.set(NOBLE)
    lab.run("qm set 103 --sata3 local:iso/a.iso,media=cdrom")
    with pytest.raises(HomelabError, match="VM 103 on pve uses it"):
        stack.work.update(stack.inputs, had, outputs)
    lab.run("qm set 103 --delete sata3")
    assert stack.work.update(stack.inputs, had, outputs).made
    assert "Ubuntu" in (lab.root / "var/lib/vz/template/iso/a.iso").read_text()


def test_nothing_happens_where_nothing_has_changed(lab: Lab) -> None:
    stack = Stack(lab, VIRTIO)
    outputs = stack.up()
    mark = lab.mark()
    assert stack.work.update(stack.inputs, stack.inputs, outputs) == outputs
    assert lab.api_calls(mark) == []


# -- before anything is changed -------------------------------------------------------------------------------------------
def checked(
    lab: Lab, downloads: dict[str, Any], *, vm: dict[str, Any] | None = None, container: dict[str, Any] | None = None
) -> list[HomelabError]:
    host = host_of(lab).model_copy(
        update={"downloads": {key: Download.model_validate(one) for key, one in downloads.items()}}
    )
    found: dict[str, Vm | Container] = {}
    if vm:
        found["vms.dev"] = Vm.model_validate({"host": NODE, "vmid": 200, "create": vm})
    if container:
        found["containers.ai"] = Container.model_validate(
            {"host": NODE, "ctid": 300, "gpuAssignment": "0", "create": container}
        )
    client = api_module.Api(host, NODE)
    return api_files.check(client, NODE, host, found)


def test_a_storage_without_the_content_is_refused_by_a_preview(lab: Lab) -> None:
    allow(lab, "iso,vztmpl,backup")
    [error] = checked(lab, {IMAGE: NOBLE, CD: VIRTIO})
    assert (
        "backup, iso, vztmpl, and not `import`" in error.found
        and "pvesm set local --content backup,import,iso,vztmpl" in error.next
    )


@pytest.mark.parametrize(
    ("vm", "container", "named"),
    [
        ({"sata0": "local:iso/Win11.iso,media=cdrom"}, None, "Windows': https://www.microsoft.com/"),
        ({"sata0": "local:iso/Win11.iso,media=cdrom"}, None, "upload it (web interface: local -> ISO Images -> Upload"),
        ({"scsi0": "local:0,import-from=local:import/a.qcow2"}, None, "upload it"),
        ({"scsi0": "local:0,import-from=nowhere:import/a.qcow2"}, None, "upload it"),
        (None, {"ostemplate": "local:vztmpl/a.tar.zst"}, "pveam download local NAME"),
    ],
)
def test_a_file_that_is_missing_is_refused_by_a_preview(lab: Lab, vm: Any, container: Any, named: str) -> None:
    [error] = checked(lab, {}, vm=vm, container=container)
    assert f", as {'vms.dev' if vm else 'containers.ai'}.create names it" in error.wanted
    assert "it is not on the storage" in error.found and named in error.next


def test_a_file_that_is_there_or_comes_is_not(lab: Lab) -> None:
    lab.run("mkdir -p $HOMELAB_ROOT/var/lib/vz/template/iso; touch $HOMELAB_ROOT/var/lib/vz/template/iso/Win11.iso")
    assert (
        checked(
            lab,
            {CD: VIRTIO},
            vm={"sata0": "local:iso/Win11.iso,media=cdrom", "sata1": "local:iso/virtio-win.iso,media=cdrom"},
        )
        == []
    )
