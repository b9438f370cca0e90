"""The layer kept_scripts: a stack's folder on a host, with the scripts that its commands name."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import kept_scripts
from remote_scripts.layers.kept_scripts import Wanted
from tests.agent.kit import Host, Refused, cuts, left_by
from tests.sampling import sample

OWNER = "homelab-lab"
PLACE = f"/var/lib/homelab/scripts/{OWNER}"
TEXTS = {"one.sh": "echo one", "two.sh": "echo two", "unit.service": "[Unit]"}


def name_of(name: str, text: str) -> str:
    return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


NAMES = {name_of(*pair) for pair in TEXTS.items()}


def packed(texts: dict[str, str]) -> str:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return base64.b64encode(gzip.compress(out.getvalue(), mtime=0)).decode()


WHOLE = packed({name_of(*pair): pair[1] for pair in TEXTS.items()})


def ask(host: Host, verb: str = "apply", content: str = WHOLE, owner: str = OWNER) -> Any:
    return host.ask(verb, "kept_scripts", Wanted(owner=owner, content=content))


def there(host: Host) -> set[str]:
    return {path.name for path in (host.root / PLACE[1:]).iterdir()}


def test_the_programs_own_are_put_whole_writable_by_root_alone_and_go_with_the_stack(host: Host) -> None:
    before = host.lasting()
    texts = {one.name: one.text for one in kept_scripts.texts()}
    assert host.ask("apply", "kept_scripts", kept_scripts.put(OWNER)) == {"kept": len(texts)}
    assert {path.name: path.read_text() for path in (host.root / PLACE[1:]).iterdir()} == texts
    assert {mode & 0o022 for path, (mode, _) in host.lasting().items() if path not in before} == {0}
    host.write(f"{PLACE}/agent.pyz", "the agent")
    assert ask(host, content="") == {"kept": len(texts)}
    for _ in "once", "more":  # the first one's answer never came
        assert ask(host, "revert", "") == {"kept": 0} and host.lasting() == before


def test_another_stacks_scripts_stay(host: Host) -> None:
    ask(host)
    mine = host.lasting()
    ask(host, owner="homelab-other")
    ask(host, "revert", "", owner="homelab-other")
    assert host.lasting() == mine


@pytest.mark.parametrize("owner", ["", "..", "a/b", "."])
def test_a_name_that_leads_elsewhere_is_refused(host: Host, owner: str) -> None:
    ask(host)
    before = host.lasting()
    for verb in ("apply", "revert"):
        with pytest.raises(Refused, match="the name of a stack's folder"):
            ask(host, verb, owner=owner)
    assert host.lasting() == before


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (WHOLE[:200], "the archive can't be unpacked"),
        ("no base64", "the archive can't be unpacked"),
        (packed({name_of("one.sh", "echo one"): "echo two"}), "is not what it was"),
        (packed({"one.sh": "echo one"}), "one.sh is not what it was"),
        (packed({}), "nothing is in it"),
    ],
)
def test_what_isnt_whole_changes_nothing(host: Host, content: str, found: str) -> None:
    ask(host)
    before = host.lasting()
    with pytest.raises(Refused, match=found):
        ask(host, content=content)
    assert host.lasting() == before


def old_ones(host: Host, year: int) -> list[str]:
    names = [f"one.sh.{f'{number}' * 16}" for number in range(6)]
    for number, name in enumerate(names):
        path = host.write(f"{PLACE}/{name}", "old")
        when = (year - 1970) * 365.25 * 86400 + number * 86400
        os.utime(path, (when, when))
    return names


def test_of_each_script_the_latest_versions_stay(host: Host) -> None:
    ask(host)
    names = old_ones(host, 2020)
    host.write(f"{PLACE}/agent.pyz", "the agent")
    ask(host)
    assert there(host) == {*NAMES, "agent.pyz", *names[2:]}


def test_a_version_that_is_put_once_more_is_the_latest_again(host: Host) -> None:
    """To undo something, the latest one is taken where the very one is gone; and it is the last to go."""
    ask(host)
    (earlier,) = (host.root / PLACE[1:]).glob("one.sh.*")
    os.utime(earlier, (1000, 1000))
    ask(host, content=packed({name_of("one.sh", "x"): "x"}))
    (other,) = {*(host.root / PLACE[1:]).glob("one.sh.*")} - {earlier}
    os.utime(other, (2000, 2000))
    ask(host)
    assert earlier.stat().st_mtime > other.stat().st_mtime
    for number in range(4):
        text = f"x{number}"
        ask(host, content=packed({name_of("one.sh", text): text}))
    assert earlier.name in there(host) and other.name not in there(host)


def test_what_was_put_just_now_stays_whatever_the_clock_says(host: Host) -> None:
    old_ones(host, 2099)
    ask(host)
    assert there(host) >= NAMES


def test_without_room_it_is_said_and_all_is_as_before(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(host, content=packed({name_of("one.sh", "x"): "x"}))
    before = host.lasting()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", PLACE)

    monkeypatch.setattr("remote_scripts.tools.disk.create", full)
    with pytest.raises(Refused, match=r"found:  No space left on device: .*\n.*\nnext:   make room below /var"):
        ask(host)
    monkeypatch.undo()
    assert host.lasting() == before


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_run_that_is_cut_short_is_gone_on_from(host: Host, verb: str, tmp_path: Path) -> None:
    before = host.lasting()
    ask(host)
    whole = host.lasting()
    if verb == "apply":
        ask(host, "revert")
    for number, cut in enumerate(sample(cuts(host, lambda one: ask(one, verb)), 30, f"kept {verb}")):
        for again, expected in (("apply", whole), ("revert", before)):
            left = left_by(cut, host, tmp_path / f"{number}-{again}")
            ask(left, again)
            assert left.lasting() == expected, f"{again} after one {cut.how}"
