"""Several stacks at once: which there are, which may run side by side, what each has come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab import events
from homelab.all_stacks import order, progress
from homelab.all_stacks.members import Member, members
from homelab.all_stacks.progress import Progress
from homelab.errors import HomelabError
from homelab.events import Said, Step, Summary
from tests.conftest import PROJECT
from tests.unit import hosts
from tests.unit.test_events import LOGS

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBrXjxXpSQzmEzGHG6mxTDVhZSDsFtTfdIwJZNhTlRO"
RSA = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDIGBRcFtJZ0QL4JCt0WH2OOvcyVOhkaUvmURFd42MopZyRYfGWeTkkF+6AYyEc6PE0"
    "m5EI7NiVxTUh+I0kOKRQVHlGIIMXNGXzNtLfwFyj0qLTmkRtJDDmgoC4VWSTlBPmB5sbsCTiyVZxfrtVJOoTqLkiBXo/V3c/QQ6Ep4SMjQ=="
)


def host(address: str = "192.0.2.1", key: str = hosts.KEY, port: int = 22, **more: Any) -> dict[str, Any]:
    return {"address": address, "ssh": {"hostKey": key, "port": port, "agent": True}, **more}


def api(digit: str) -> dict[str, Any]:
    return {"token": "homelab@pve!pulumi", "tokenSecret": {"secure": "v1:x"}, "fingerprint": ":".join([digit * 2] * 32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "Pulumi.yaml").write_text((PROJECT / "Pulumi.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str, *of: dict[str, Any], **more: Any) -> None:
    config = {"homelab:hosts": {f"pve{number or ''}": one for number, one in enumerate(of)}, **more}
    (folder / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": config}))


def found(folder: Path, **stacks: list[dict[str, Any]]) -> list[Member]:
    for name, of in stacks.items():
        write(folder, name, *of)
    return members([], set(stacks))[0]


# -- which there are -------------------------------------------------------------------------------------------------------
def test_each_file_that_is_a_stack_counts_and_the_others_are_left_out_with_a_sentence(folder: Path) -> None:
    for name in ("gaming", "work"):
        write(folder, name, host())
    (folder / "Pulumi.homelab.yaml").write_text((PROJECT / "Pulumi.homelab.yaml").read_text())
    (folder / "Pulumi.broken.yaml").write_text("\tno: yaml")
    (folder / "Pulumi.two words\x1b[31m.yaml").write_text("{}")
    chosen, left = members([], {"gaming", "work"})
    assert [one.name for one in chosen] == ["gaming", "work"]
    assert chosen[0].shown_hosts == "pve (192.0.2.1)"
    assert left == [
        "broken is left out: not a stack yet (pulumi stack init broken)",
        "homelab is left out: not a stack yet (pulumi stack init homelab)",
        "Pulumi.two words.yaml is left out: a stack's name has letters, digits, hyphens, underscores and periods",
    ]


def test_a_stack_that_is_named_and_is_none_yet_is_refused(folder: Path) -> None:
    write(folder, "work", host())
    write(folder, "gaming", host())
    with pytest.raises(HomelabError, match="not a stack yet") as error:
        members(["work", "gaming"], {"work"})
    assert error.value.next.startswith("make it: pulumi stack init gaming")
    with pytest.raises(HomelabError, match=r"no Pulumi\.none\.yaml"):
        members(["none"], {"work"})


def test_a_name_with_its_organization_is_taken_as_it_is(folder: Path) -> None:
    write(folder, "work", host())
    assert [one.name for one in members(["me/homelab/work", "me/homelab/work"], set())[0]] == ["me/homelab/work"]


def test_no_stack_at_all_is_one_error_that_says_what_there_is(folder: Path) -> None:
    with pytest.raises(HomelabError, match=r"no file Pulumi\.STACK\.yaml"):
        members([], {"elsewhere"})
    write(folder, "work", host())
    with pytest.raises(HomelabError, match="work is left out: not a stack yet"):
        members([], set())


WRONG: dict[str, str | bytes] = {
    "no YAML": "\tconfig: [",
    "no text": b"\xff\xfe\x00",
    "no host": "config: {}",
    "hosts encrypted": "config: {'homelab:hosts': {secure: v1:x}}",
    "a mistake": f"config: {{'homelab:hosts': {{pve: {{address: 192.0.2.1, ssh: {{hostKey: {hosts.KEY}}}}}}}}}",
    "settings that nobody reads": "homelab:hosts: {}",
}


@pytest.mark.parametrize("case", WRONG)
def test_one_file_that_can_not_be_used_stops_all_before_anything(case: str, folder: Path) -> None:
    write(folder, "work", host())
    content = WRONG[case]
    (folder / "Pulumi.wrong.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HomelabError) as error:
        members([], {"work", "wrong"})
    assert "Pulumi.wrong.yaml" in str(error.value) and "--stack A --stack B" in str(error.value)
    assert [one.name for one in members(["work"], {"work", "wrong"})[0]] == ["work"]


# -- side by side ------------------------------------------------------------------------------------------------------------
SAME = {
    "the same address": (host(), host(key=OTHER_KEY), True),
    "another address": (host(), host("192.0.2.2", OTHER_KEY), False),
    "an address by its name, the same key": (host(), host("pve.lan"), True),
    "names are written in any case": (host("PVE.lan"), host("pve.lan", OTHER_KEY), True),
    "an address of version 6 in another form": (host("2001:db8::1"), host("2001:db8:0::1", OTHER_KEY), True),
    "behind one address, another port, another key": (host(port=2201), host(port=2202, key=OTHER_KEY), False),
    "behind one address, another port, the same key": (host(port=2201), host(port=2202), True),
    "behind one address, keys that can't be compared": (host(port=2201), host(port=2202, key=RSA), True),
    "another address, the same API": (host(api=api("A")), host("192.0.2.9", OTHER_KEY, api=api("a")), True),
    "another address, another API": (host(api=api("A")), host("192.0.2.9", OTHER_KEY, api=api("B")), False),
}


@pytest.mark.parametrize("case", SAME)
def test_two_hosts_are_one_machine_where_address_key_or_certificate_say_so(case: str, folder: Path) -> None:
    one, other, same = SAME[case]
    both = found(folder, a=[one], b=[other])
    assert order.shared(both) == {"a": {"b"} if same else set(), "b": {"a"} if same else set()}


def test_stacks_with_a_host_in_common_run_in_their_order_and_the_others_beside_them(folder: Path) -> None:
    first, second, third = host(), host("192.0.2.2", OTHER_KEY), host("192.0.2.3", RSA)
    all_of_them = found(folder, a=[first], b=[first, second], c=[second], d=[third])
    shared = order.shared(all_of_them)
    names = [one.name for one in all_of_them]
    assert order.startable(names, [], shared, 4) == ["a", "d"]
    # c could run now, but comes after b, which has the same host and still waits.
    assert order.startable(["b", "c"], ["a"], shared, 4) == []
    assert order.startable(["b", "c"], [], shared, 4) == ["b"]
    assert order.startable(["c"], [], shared, 4) == ["c"]
    assert order.said(all_of_them) == [
        "192.0.2.1: a, then b; one after the other, since they change the same host",
        "192.0.2.2: b, then c; one after the other, since they change the same host",
    ]


def test_no_more_run_at_the_same_time_than_were_asked_for(folder: Path) -> None:
    names = [f"s{number:02}" for number in range(30)]
    nothing: dict[str, set[str]] = {name: set() for name in names}
    assert order.startable(names, [], nothing, 4) == names[:4]
    assert order.startable(names[4:], names[:3], nothing, 4) == names[4:5]
    assert order.startable(names[4:], names[:4], nothing, 4) == []


def test_thirty_stacks_of_one_host_all_get_their_turn(folder: Path) -> None:
    all_of_them = found(folder, **{f"s{number:02}": [host()] for number in range(30)})
    shared, waiting, done = order.shared(all_of_them), [one.name for one in all_of_them], []
    while waiting:
        (name,) = order.startable(waiting, [], shared, 4)
        waiting.remove(name)
        done.append(name)
    assert done == sorted(done) and len(order.said(all_of_them)) == 1


# -- what each has come to -----------------------------------------------------------------------------------------------------
def ended(
    operation: progress.Operation, log: str, code: int, printed: str = "", *, interrupted: bool = False
) -> Progress:
    run = Progress("work", "pve (192.0.2.1)", operation)
    run.take(events.read(LOGS / f"{log}.jsonl") if log else [])
    run.end(code, printed, interrupted=interrupted)
    return run


def test_an_up_that_went_well_says_what_changed() -> None:
    run = ended("up", "up", 0)
    assert (run.state, run.result, run.open) == ("done", "11 created", [])
    assert "pve-boot-verified" in run.finished


def test_what_is_going_on_is_the_last_step_or_message() -> None:
    run = Progress("work", "", "up")
    lines = run.take(
        [
            Step("begun", "create", "command:remote:Command", "pve-boot-reboot"),
            Said("debug", "noise"),
            Said("info", "building the module: 40 %", "pve-nvidia", passing=True),
            Said("info", "verified\nmore of it", "pve-nvidia"),
        ]
    )
    assert lines == ["pve-boot-reboot: create", "verified"] and run.now == "verified"
    assert run.open == ["pve-boot-reboot"]


def test_a_refused_preview_has_its_four_parts_and_a_line() -> None:
    run = ended("preview", "refused", 255)
    assert run.state == "failed" and run.result == "refused: gpus.x: a card (10de:9999)"
    assert len(run.errors) == 1 and "next:" in run.errors[0]


def test_a_preview_without_a_change_says_so() -> None:
    run = Progress("work", "", "preview")
    run.take([Summary({"same": 11})])
    run.end(0, "", interrupted=False)
    assert run.result == "nothing to change" and not run.has_changes


KNOWN = {
    "locked": (
        "error: the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end or delete the lock file with `pulumi cancel`.\n"
        "  file:///state/.pulumi/locks/organization/homelab/work/x.json: created by me@laptop (pid 7) at 2026-11-21T20:00:00Z",
        "pulumi cancel --stack work",
    ),
    "another passphrase": (
        "error: getting stack configuration: get stack secrets manager: incorrect passphrase",
        "PULUMI_CONFIG_PASSPHRASE",
    ),
    "anything else": ("error: no space left on device", "no space left on device"),
    "nothing": ("", "without a message"),
}


@pytest.mark.parametrize("case", KNOWN)
def test_an_error_of_pulumis_own_gets_four_parts(case: str) -> None:
    printed, said = KNOWN[case]
    (error,) = ended("up", "", 255, printed).errors
    assert said in error and [part in error for part in ("wanted:", "found:", "why:", "next:")] == [True] * 4


def test_an_interrupted_run_says_what_is_done_what_was_under_way_and_how_it_goes_on() -> None:
    run = Progress("work", "", "up")
    run.take(
        [
            Step("begun", "create", "command:remote:Command", "one"),
            Step("done", "create", "command:remote:Command", "one"),
            Step("begun", "create", "command:remote:Command", "two"),
            Said("error", "update canceled"),
        ]
    )
    run.end(255, "error: update canceled", interrupted=True)
    assert run.state == "interrupted" and run.result == "interrupted, 1 step done" and run.errors == []
    assert run.where_it_stands == [
        "work: done: one",
        "  perhaps done, since it was under way: two",
        "  to go on from there: pulumi up --stack work",
    ]
    run.end(-9, "", interrupted=True)
    assert "pulumi cancel --stack work, then pulumi up" in run.where_it_stands[-1]


def test_the_exit_status_tells_of_the_worst() -> None:
    def states(*of: progress.State) -> int:
        return progress.status([Progress("x", "", "up", state=state) for state in of])

    assert states("done", "done") == 0 and states("done", "failed") == 1
    assert states("done", "failed", "not begun") == 130 and states() == 0


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.9, "59 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")])
def test_a_time_is_said_in_words(seconds: float, said: str) -> None:
    assert progress.in_time(seconds) == said
