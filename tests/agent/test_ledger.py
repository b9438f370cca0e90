"""The layer ledger: notes about things that aren't files of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_scripts.both.ledger import Wanted
from tests.agent.kit import Host, Refused, cuts, left_by

NOTE = '{"record": {"hostpci0": "mapping=x"}}'


def ask(host: Host, verb: str, name: str = "mapping/pve/gpu", **wanted: object) -> str:
    return str(host.ask(verb, "ledger", Wanted(name=name, **wanted))["note"])  # type: ignore[arg-type]


def test_a_note_is_written_and_forgotten(host: Host) -> None:
    before = host.lasting()
    assert ask(host, "read") == ""
    assert ask(host, "apply", note=NOTE) == NOTE == ask(host, "read")
    assert host.read("/var/lib/homelab/ledger/mapping/pve/gpu") == f"{NOTE}\n"
    assert ask(host, "apply", note="{}") == "{}" == ask(host, "read")
    assert ask(host, "apply") == "" and host.lasting() == before


def test_a_note_that_cant_be_read_is_not_taken_for_none(host: Host) -> None:
    (host.root / "var/lib/homelab/ledger/mapping/pve/gpu").mkdir(parents=True)
    with pytest.raises(Refused, match="can't be read"):
        ask(host, "read")


@pytest.mark.parametrize("note", [NOTE, ""])
def test_a_note_that_is_cut_short_anywhere_is_the_old_one_or_the_new_one(host: Host, tmp_path: Path, note: str) -> None:
    ask(host, "apply", note='{"old": 1}')
    for number, cut in enumerate(cuts(host, lambda one: ask(one, "apply", note=note))):
        left = left_by(cut, host, tmp_path / str(number))
        assert ask(left, "read") in (note, '{"old": 1}'), cut.how
