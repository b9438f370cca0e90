"""What becomes of a downloaded file: replaced and removed only where it is this program's, and nobody uses it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homelab.errors import ApiError, HomelabError, UnansweredError
from homelab.remote import ledger
from homelab.remote.proxmox.files import Files
from homelab.storage import work as storage_file
from homelab.storage.resource import StorageFile
from homelab.storage.work import StorageFileWork
from tests.unit.test_created_vms import texts
from tests.unit.test_new_guests import error_of

VOLUME, URL, SUM = "local:iso/a.iso", "https://a.example/a.iso", "sha256:aa"
INPUTS = StorageFile.Inputs(host="pve1", node="pve1", download="a.iso", volume=VOLUME, url=URL, checksum=None)
NOTED = {"url": URL, "checksum": None}
MADE, FOUND = StorageFile.Outputs(made=True), StorageFile.Outputs(made=False)


class Storage:
    """A host with one file, what is noted of it, and who uses it. `done`: what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.users, self.done = False, list[str](), list[str]()
        self.note: dict[str, Any] | None = None
        self.error: Exception | None = None
        self.comes_late = False
        self.work: Any = StorageFileWork(texts({}, {}).texts)

        def take_note(_session: Any, _name: str, note: dict[str, Any]) -> None:
            self.note = note
            self.done.append("noted")

        def forget(*_: Any) -> None:
            self.note = None
            self.done.append("forgotten")

        monkeypatch.setattr(storage_file, "_users", lambda *_: self.users)
        monkeypatch.setattr(ledger, "noted", lambda *_: self.note)
        monkeypatch.setattr(ledger, "note", take_note)
        monkeypatch.setattr(ledger, "forget", forget)
        monkeypatch.setattr(self.work, "_files", lambda _: self)

    def exists(self, _volume: str) -> bool:
        return self.there

    def downloads(self, _volume: str) -> list[str]:
        return []

    def fetch(self, _volume: str, _name: str, _url: str, checksum: str | None) -> None:
        self.done.append(f"fetched {checksum or 'uncompared'}")
        self.there = not self.error or self.comes_late
        if self.error:
            raise self.error

    def end(self, _volume: str) -> None:
        self.done.append("ended")

    def remove(self, _volume: str) -> None:
        self.done.append("removed")
        self.there = False


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(monkeypatch)


DOWNLOADED = ["noted", "fetched uncompared"]


@pytest.mark.parametrize(
    ("there", "note", "changes", "made", "done"),
    [
        (False, None, {}, True, DOWNLOADED),
        (False, NOTED, {}, True, DOWNLOADED),
        (True, None, {}, False, []),
        (True, None, {"checksum": SUM}, False, [f"fetched {SUM}"]),  # Proxmox VE compares it
        (True, NOTED, {}, True, []),
        (True, {**NOTED, "url": "https://b.example"}, {}, True, ["removed", "forgotten", *DOWNLOADED]),
        (False, None, {"checksum": SUM}, True, ["noted", f"fetched {SUM}"]),
    ],
)
def test_a_file_is_used_taken_over_or_downloaded(
    storage: Storage, there: bool, note: Any, changes: dict[str, Any], made: bool, done: list[str]
) -> None:
    storage.there, storage.note = there, note
    outputs = storage.work.create(dataclasses.replace(INPUTS, **changes))
    assert (outputs.made, storage.done) == (made, done)


@pytest.mark.parametrize(
    ("kind", "comes", "noted"), [(ApiError, False, False), (ApiError, True, True), (UnansweredError, False, True)]
)
def test_a_download_that_fails_is_noted_while_it_may_be_there(
    storage: Storage, kind: type[Any], comes: bool, noted: bool
) -> None:
    storage.error = error_of(kind)
    storage.comes_late = comes
    with pytest.raises(kind):
        storage.work.create(INPUTS)
    assert (storage.note is not None) is noted


@pytest.mark.parametrize(
    ("outputs", "users", "done"),
    [(MADE, [], ["ended", "removed", "forgotten"]), (MADE, ["VM 1"], ["forgotten"]), (FOUND, [], [])],
)
def test_a_file_is_removed_that_is_ours_and_that_nobody_uses(
    storage: Storage, outputs: Any, users: list[str], done: list[str]
) -> None:
    storage.users = users
    storage.work.delete(INPUTS, outputs)
    assert storage.done == done


OTHER = dataclasses.replace(INPUTS, url="https://b.example/a.iso")


@pytest.mark.parametrize(
    ("inputs", "outputs", "done"),
    [
        (INPUTS, MADE, []),
        (INPUTS, dataclasses.replace(MADE, drift=["gone"]), DOWNLOADED),
        (OTHER, MADE, ["removed", "forgotten", *DOWNLOADED]),
        (OTHER, dataclasses.replace(MADE, drift=["gone"]), ["removed", "forgotten", *DOWNLOADED]),
        (OTHER, FOUND, DOWNLOADED),
    ],
)
def test_another_file_of_its_name_takes_the_place_of_ours(
    storage: Storage, inputs: Any, outputs: Any, done: list[str]
) -> None:
    storage.work.update(inputs, INPUTS, outputs)
    assert storage.done == done


def test_a_file_that_a_guest_uses_is_not_replaced(storage: Storage) -> None:
    storage.users = ["VM 1"]
    with pytest.raises(HomelabError, match="VM 1 uses it"):
        storage.work.update(OTHER, INPUTS, MADE)
    assert storage.done == []


@pytest.mark.parametrize(
    ("rows", "drift"),
    [
        ([{"volid": VOLUME, "content": "iso"}], []),
        ([{"volid": VOLUME, "content": "import"}], [f"{VOLUME} is gone"]),
        ([{"volid": "local:iso/b.iso", "content": "iso"}], [f"{VOLUME} is gone"]),
        ([], [f"{VOLUME} is gone"]),
    ],
)
def test_a_file_that_is_gone_is_drift(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, str]], drift: list[str]
) -> None:
    def get(_path: str, _wanted: str, *, content: str) -> list[dict[str, str]]:
        return [row for row in rows if row["content"] == content]

    monkeypatch.setattr(storage.work, "_files", lambda _: Files(cast(Any, SimpleNamespace(node="pve", get=get)), print))
    assert storage.work.read(INPUTS, MADE).drift == drift


@pytest.mark.parametrize(
    ("note", "done"),
    [(NOTED, ["ended", "removed", "forgotten"]), ({**NOTED, "url": "https://b.example"}, []), (None, [])],
)
def test_what_a_killed_run_has_begun_is_removed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, note: Any, done: list[str]
) -> None:
    monkeypatch.setattr(StorageFile, "inputs_of", lambda *_: INPUTS)
    about = {"pve1": {"downloads": {"a.iso": {"url": URL}}}}
    storage.work.stack = texts({}, about)
    storage.work.remove_unfinished("pve1", "pve1", {"file/pve1/local:iso+a.iso": json.dumps(note)} if note else {})
    assert storage.done == done
