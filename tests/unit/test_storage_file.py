"""What becomes of a downloaded file: replaced and removed only where it is this program's, and nobody uses it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from homelab.errors import HomelabError
from homelab.provider import storage_file
from homelab.provider.storage_file import StorageFileWork
from homelab.remote import ledger
from homelab.remote.proxmox.errors import ApiError, UnansweredError
from homelab.resources.storage_file import StorageFile
from tests.unit.test_created_vms import texts
from tests.unit.test_new_guests import error_of

VOLUME, URL, SUM = "local:iso/a.iso", "https://a.example/a.iso", "sha256:aa"
INPUTS = StorageFile.Inputs(
    host="pve1", node="pve1", download="a", volume=VOLUME, url=URL, checksum=None, sums=None, named="a.iso", keep=False
)
NOTED = {"url": URL, "checksum": None, "compared": SUM}
MADE, FOUND = StorageFile.Outputs(made=True, compared=""), StorageFile.Outputs(made=False, compared="")


class Storage:
    """A host with one file, what is noted of it, and who uses it. `done`: what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.users, self.done = False, list[str](), list[str]()
        self.note: dict[str, Any] | None = None
        self.error: Exception | None = None
        self.comes_late = False
        self.work: Any = StorageFileWork(texts({}, {}).texts)

        def noted(*_: Any) -> Any:
            return self.note

        def take_note(_host: Any, _inputs: Any, checksum: str | None) -> None:
            self.note = {"compared": checksum}
            self.done.append("noted")

        def users(*_: Any) -> list[str]:
            return self.users

        def sums(*_: Any) -> str:
            return f"{'a' * 64}  a.iso\n"

        def forget(*_: Any) -> None:
            self.note = None
            self.done.append("forgotten")

        for name, function in (("_noted", noted), ("_note", take_note), ("_users", users), ("_sums", sums)):
            monkeypatch.setattr(storage_file, name, function)
        monkeypatch.setattr(ledger, "forget", forget)
        monkeypatch.setattr(self.work, "_files", lambda _: self)

    def exists(self, _volume: str) -> bool:
        return self.there

    def is_coming(self, _volume: str) -> bool:
        return False

    def fetch(self, _volume: str, source: Any) -> None:
        self.done.append(f"fetched {source.checksum or 'uncompared'}")
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
        (True, None, {"checksum": SUM, "url": None}, False, []),
        (True, NOTED, {}, True, []),
        (True, {**NOTED, "url": "https://b.example"}, {}, True, ["removed", "forgotten", *DOWNLOADED]),
        (False, None, {"sums": "https://a.example/SUMS"}, True, ["noted", f"fetched sha256:{'a' * 64}"]),
    ],
)
def test_a_file_is_used_taken_over_or_downloaded(
    storage: Storage, there: bool, note: Any, changes: dict[str, Any], made: bool, done: list[str]
) -> None:
    storage.there, storage.note = there, note
    outputs = storage.work.create(dataclasses.replace(INPUTS, **changes))
    assert (outputs.made, storage.done) == (made, done)


@pytest.mark.parametrize(
    ("note", "checksum", "compared"),
    [(NOTED, None, SUM), ({**NOTED, "compared": None}, None, ""), (None, SUM, SUM), (None, None, "")],
)
def test_what_a_file_that_is_there_was_compared_with_is_known(
    storage: Storage, note: Any, checksum: str | None, compared: str
) -> None:
    storage.there, storage.note = True, note
    assert storage.work.create(dataclasses.replace(INPUTS, checksum=checksum)).compared == compared


def test_a_file_that_its_maker_doesnt_list_is_refused(storage: Storage) -> None:
    with pytest.raises(HomelabError):
        storage.work.create(dataclasses.replace(INPUTS, sums="https://a.example/SUMS", named="b.iso"))
    assert storage.done == []


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
    ("outputs", "keep", "users", "done"),
    [
        (MADE, False, [], ["ended", "removed", "forgotten"]),
        (MADE, True, [], ["forgotten"]),
        (MADE, False, ["VM 1"], ["forgotten"]),
        (FOUND, False, [], []),
    ],
)
def test_a_file_is_removed_that_is_ours_and_that_nobody_uses(
    storage: Storage, outputs: Any, keep: bool, users: list[str], done: list[str]
) -> None:
    storage.users = users
    storage.work.delete(dataclasses.replace(INPUTS, keep=keep), outputs)
    assert storage.done == done


OTHER = dataclasses.replace(INPUTS, url="https://b.example/a.iso")


@pytest.mark.parametrize(
    ("inputs", "outputs", "done"),
    [
        (INPUTS, MADE, []),
        (dataclasses.replace(INPUTS, keep=True), MADE, []),
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
    monkeypatch.setattr(storage.work, "reading", lambda *_: rows)
    assert storage.work.read(INPUTS, MADE).drift == drift


@pytest.mark.parametrize(
    ("note", "done"),
    [(NOTED, ["ended", "removed", "forgotten"]), ({**NOTED, "url": "https://b.example"}, []), (None, [])],
)
def test_what_a_killed_run_has_begun_is_removed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, note: Any, done: list[str]
) -> None:
    monkeypatch.setattr(StorageFile, "inputs_of", lambda *_: INPUTS)
    about = {"pve1": {"downloads": {"a": {"image": "virtio-win"}}}}
    storage.work.stack = texts({}, about)
    storage.work.remove_unfinished("pve1", "pve1", {"file/pve1/local:iso+a.iso": json.dumps(note)} if note else {})
    assert storage.done == done
