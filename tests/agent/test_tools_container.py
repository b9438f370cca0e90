"""tools/container.py: a container's files and programs over the helper, which a shell of this machine runs on a folder in the place of lxc-attach."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from homelab.remote.scripts import file
from remote_scripts import agent
from remote_scripts.tools import container
from remote_scripts.tools import helper as helper_text
from remote_scripts.tools.container import Container, ContainerWork
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import NOT_FOUND, TIMED_OUT
from remote_scripts.tools.system import System
from tests import sampling
from tests.agent.kit import Host, cuts, left_by, watched
from tests.waiting import PATIENCE, wait_until

HELPER = file("container_helper.sh")
SHELLS = [["dash"], ["bash", "--posix"], ["busybox", "sh"]]
#: A shell that answers as the helper does, and lies: `BODY` is what it says after it has read a request.
LIAR = 'while IFS= read -r r && IFS= read -r c; do eval set -- "$r"; mark=$1; BODY; done'


def one(host: Host, *begin: str) -> Container:
    (host.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    inside = Container("container 901", begin, System(host.root), str(host.root))
    inside.work.lock_seconds = 0.5
    return inside


@pytest.fixture(params=SHELLS, ids=lambda shell: str(shell[0]))
def inside(host: Host, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    shell: list[str] = request.param
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} isn't on this machine")
    begin = [*shell, "-c", HELPER]
    if shell[0] == "busybox":  # as on Alpine, where its applets are all the programs that there are
        applets = tmp_path / "applets"
        applets.mkdir()
        subprocess.run(["busybox", "--install", "-s", str(applets)], check=True)
        begin = ["env", f"PATH={applets}:{os.environ['PATH']}", *begin]
    made = one(host, *begin)
    yield made
    made.channel.close()


def lying(host: Host, body: str) -> Container:
    return one(host, "dash", "-c", LIAR.replace("BODY", body))


def test_it_is_started_by_one_lxc_attach_without_this_hosts_environment() -> None:
    begin = container.attach(901, HELPER)
    assert begin == ("lxc-attach", "--clear-env", "-n", "901", "--", "/bin/sh", "-c", HELPER)
    assert len(HELPER.splitlines()) <= 80


def test_a_program_gets_its_words_and_its_input_and_answers(inside: Container) -> None:
    words = ("it's", "", "$HOME `id` \\", "é", "*")
    assert inside.run.ask("printf", "%s|", *words).output == b"it's||$HOME `id` \\|\xc3\xa9|*|"
    given = bytes(range(256)) * 2000 + b"\n\n"
    assert inside.run.ask("cat", stdin=given, limit=len(given)).output == given
    assert (
        inside.run.ask("cat").output == b"" and inside.run.ask("env", environment={"A": "b c"}).text.count("A=b c") == 1
    )
    done = inside.run.ask("sh", "-c", "echo out; echo why >&2; exit 3")
    assert (done.status, done.output, done.error) == (3, b"out\n", b"why\n")
    assert inside.run.ask("no-such-program").status == NOT_FOUND
    assert inside.run.has("cat") and not inside.run.has("no-such-program")
    with pytest.raises(ValueError, match="of several lines"):
        inside.run.ask("echo", "a\nb")


def test_programs_are_found_where_nixos_has_them(inside: Container) -> None:
    assert inside.run.ask("sh", "-c", "echo $PATH").text.endswith(":/run/current-system/sw/bin")


def test_what_all_programs_have_in_their_environment_is_on_no_command_line(inside: Container) -> None:
    inside.run.environment |= {"https_proxy": "http://u:it's$secret@proxy"}
    done = inside.run.ask("sh", "-c", "env; cat /proc/*/cmdline 2>/dev/null")
    assert done.text.count("it's$secret") == 1 and "https_proxy=http://u:it's$secret@proxy" in done.text


def test_all_is_done_by_one_shell(inside: Container) -> None:
    assert len({inside.run.ask("sh", "-c", "echo $(ps -o ppid= -p $PPID)").text for _ in range(3)}) == 1


def test_what_is_too_long_is_cut_and_what_hangs_is_killed_and_the_conversation_goes_on(inside: Container) -> None:
    done = inside.run.ask("head", "-c", "300000", "/dev/zero", limit=1000)
    assert (done.status, done.output) == (1, bytes(1000))
    assert inside.run.ask("sleep", "60", seconds=1).status == TIMED_OUT
    assert inside.run.ask("echo", "on").text == "on"


def test_what_a_program_leaves_running_is_not_waited_for_and_its_words_are_nobodys_answer(inside: Container) -> None:
    began = time.monotonic()
    left = "(for i in 1 2 3; do sleep 0.2; echo junk; done) & echo mine"
    assert inside.run.ask("sh", "-c", left).text == "mine"
    time.sleep(0.5)
    assert inside.run.ask("echo", "next").text == "next" and time.monotonic() - began < PATIENCE


def test_work_is_logged_on_the_host_and_fails_with_its_last_lines(
    inside: Container, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside.run.do("sh", "-c", "echo one; echo two >&2; printf three", doing="working").status == 0
    heading, *lines = host.read("/run/homelab/steps").splitlines()
    assert "container 901: working: sh -c" in heading and [line for line in lines if line.strip()] == [
        "  one",
        "  two",
        "  three",
    ]
    done = inside.run.do("sh", "-c", "seq 1 50000; echo E: the reason; exit 1")
    assert done.status == 1 and done.output.endswith(b"50000\nE: the reason")
    assert "E: the reason" in capsys.readouterr().err
    assert inside.run.do("sh", "-c", "seq 1 50000").status == 0


def is_held(host: Host, name: str) -> bool:
    return subprocess.run(["flock", "-n", f"{host.root}/run/homelab/{name}", "true"], check=False).returncode == 1


def test_work_goes_on_with_the_lock_and_its_turn_though_the_agent_is_gone(inside: Container, host: Host) -> None:
    """The next run waits for both (layers/run_guard.py)."""
    inside.work.client = "anna's up"
    inside.work.take_lock()
    assert host.read("/run/homelab/inside") == "anna's up\n"
    process = inside.channel._process
    assert process and process.stdin and process.stdout and process.stderr
    script = "touch $0/begun; i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 1; touch $0/done"
    mark = "0" * 32
    process.stdin.write(f"{mark} 60 do sh -c '{script}' {host.root}\n\n".encode())
    until = time.monotonic() + PATIENCE
    while not host.exists("/begun"):
        assert time.monotonic() < until
        time.sleep(0.02)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert isinstance(inside.work, ContainerWork) and inside.work._turn is not None
    os.close(inside.work._turn)
    inside.work._turn = None
    assert is_held(host, "lock") and is_held(host, "inside")
    lock = os.open(host.root / "run/homelab/lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.close(lock)
    assert host.exists("/done")
    process.wait(PATIENCE)
    wait_until(lambda: not is_held(host, "inside"))


def test_the_lock_is_the_one_that_scripts_in_there_take(inside: Container, host: Host) -> None:
    lock = os.open(host.root / "run/homelab/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(Failure, match="to be the only one changing container 901"):
        inside.work.take_lock()
    os.close(lock)
    inside.work.take_lock()
    assert is_held(host, "lock")
    assert inside.run.ask("ls", "-l", "/proc/self/fd").text.count("homelab/lock") == 0
    inside.work.release()
    assert not is_held(host, "lock")


def test_files_are_read_as_they_are(inside: Container, host: Host) -> None:
    content = bytes(range(256)) * 100
    host.write("/etc/it's a file", content)
    (host.root / "etc/link").symlink_to("nowhere")
    os.mkfifo(host.root / "etc/pipe")
    host.write("/etc/lines", "one é\ntwo\n\n")
    files = inside.files
    assert files.read("/etc/it's a file") == content and files.read("/etc/it's a file", 10) == content[:11]
    assert files.text("/etc/lines") == "one é\ntwo" and files.line("/etc/lines") == "one é"
    assert files._disk.digest(Path(files.name("/etc/lines"))) == hashlib.sha256("one é\ntwo\n\n".encode()).hexdigest()
    assert (files.size("/etc/lines"), files.size("/etc/none")) == (12, -1)
    (host.root / "etc/way").symlink_to("lines")
    assert (files.resolved("/etc/way"), files.resolved("/etc/link")) == ("/etc/lines", "")
    assert files.target("/etc/way") == "lines" and files.target("/etc/lines") == ""
    assert files.need("/etc/none") is None and files.need("/etc/lines", 3) == b"one "
    with pytest.raises(OSError, match="can't be read"):
        files.need("/etc/pipe")
    assert files.read("/etc/none") is files.read("/etc/pipe") is files.read("/etc") is files.read("/etc/link") is None
    assert files.exists("/etc/link") and not files.exists("/etc/none")
    host.write("/etc/d/a\nb", "")
    assert files.names("/etc/d") == ["a\nb"] and files.names("/etc/none") == []


def test_a_file_is_the_old_or_the_new_one_at_every_call(inside: Container, host: Host) -> None:
    place, old, new = "/etc/app/conf", b"old\n", bytes(range(256)) * 400
    path = host.write(place, old, 0o600)
    victim = host.write("/etc/victim", "kept\n")
    left_over = host.root / "etc/app/.conf.homelab-tmp"  # of a run that was cut short, or somebody has put it there
    left_over.symlink_to(victim)
    seen: list[tuple[str, bytes]] = []
    with watched(lambda call, _path: seen.append((call, path.read_bytes()))):
        inside.files.write(place, new, 0o640)
    assert [call for call, _ in seen] == ["remove", "create", "chmod", "flush", "rename", "flush"]
    assert {content for _, content in seen[:-1]} == {old} and seen[-1][1] == new
    assert path.stat().st_mode & 0o7777 == 0o640 and victim.read_text() == "kept\n"
    assert [one.name for one in path.parent.iterdir()] == ["conf"]
    for stop in range(len(seen)):
        path.write_bytes(old)
        left_over.unlink(missing_ok=True)
        left_over.symlink_to(victim)

        left = iter(range(stop, -1, -1))

        def cut(call: str, _path: str, left: Iterator[int] = left) -> None:
            if next(left) == 0:
                raise InterruptedError(call)

        with watched(cut), pytest.raises(InterruptedError):
            inside.files.write(place, new, 0o640)
        assert path.read_bytes() in (old, new)
        inside.files.write(place, new, 0o640)
        assert path.read_bytes() == new and [one.name for one in path.parent.iterdir()] == ["conf"]
    inside.files.remove(place, "/etc/none")
    assert not path.exists()


OLD, LINK, NEW = "/etc/app/old.conf", "/etc/app/link", "/usr/lib/app/new/conf"


def put_all(host: Host) -> None:
    inside = one(host, "dash", "-c", HELPER)

    def change() -> None:
        inside.files.put("app", OLD, 0o600, b"ours\n")
        inside.files.put("app", LINK, 0o644, b"ours\n")
        inside.files.put("app", NEW, 0o755, b"ours, and no one's before\n")

    try:
        inside.changing(change)
    finally:
        inside.close()


def drop_all(host: Host) -> None:
    inside = one(host, "dash", "-c", HELPER)

    def change() -> None:
        for path in (NEW, LINK, OLD):
            inside.files.drop("app", path)

    try:
        inside.changing(change)
    finally:
        inside.close()


def someones(place: Path) -> Host:
    host = Host(place)
    os.utime(host.write(OLD, "somebody's\n", 0o640), ns=(1, 1_000_000_000))
    (host.root / LINK[1:]).symlink_to("elsewhere")
    (host.root / "usr/lib").mkdir()
    return host


def lasting(host: Host) -> dict[str, object]:
    return {**host.tree("etc", "usr", "var")}


def test_files_of_ours_are_noted_and_given_back_as_on_a_host(tmp_path: Path) -> None:
    """The same notes, byte for byte: scripts in there have the same."""
    near, host = someones(tmp_path / "near"), someones(tmp_path / "far")
    before = lasting(host)
    put_all(host)
    system = near.system()

    def change() -> None:
        for path, mode, content in (
            (OLD, 0o600, b"ours\n"),
            (LINK, 0o644, b"ours\n"),
            (NEW, 0o755, b"ours, and no one's before\n"),
        ):
            system.files.put("app", path, mode, content)

    system.changing(change)
    assert lasting(host) == lasting(near) != before
    assert host.root.joinpath(f"var/lib/homelab/kept{OLD}").stat().st_mtime_ns == 1_000_000_000
    inside = one(host, "dash", "-c", HELPER)
    assert inside.files.of_layer("app") == dict.fromkeys(sorted((OLD, LINK, NEW)), "ok")
    host.write(OLD, "by hand\n")
    assert inside.files.state("app", OLD) == "changed"
    with pytest.raises(ValueError, match="of another system"):
        inside.files.at(OLD)
    inside.close()
    drop_all(host)
    edited = [path for path in host.tree("var") if path.startswith(f"var/backups/homelab{OLD}.")]
    assert len(edited) == 1 and host.read(edited[0]) == "by hand\n"
    shutil.rmtree(host.root / "var/backups")
    assert lasting(host) == before
    assert host.root.joinpath(OLD[1:]).stat().st_mtime_ns == 1_000_000_000


@pytest.mark.parametrize("what", ["put", "drop"])
def test_what_is_cut_short_in_there_is_gone_on_from_and_given_back(tmp_path: Path, what: str) -> None:
    """Killed, or by a power cut, before each call; a sample of these."""
    host = someones(tmp_path / "host")
    before = lasting(host)
    if what == "drop":
        put_all(host)
    found = cuts(host, put_all if what == "put" else drop_all, most=12, name=what)
    assert len(found) >= 12
    wanted = someones(tmp_path / "wanted")
    put_all(wanted)
    for number, cut in enumerate(found):
        left = left_by(cut, host, tmp_path / str(number))
        if number % 2:
            put_all(left)
            assert lasting(left) == lasting(wanted), f"HOMELAB_SEED={sampling.SEED} {cut.how}"
        drop_all(left)
        assert lasting(left) == before, f"HOMELAB_SEED={sampling.SEED} {cut.how}"


def test_what_was_changed_is_put_back_where_the_work_fails(tmp_path: Path) -> None:
    host = someones(tmp_path)
    before = lasting(host)
    inside = one(host, "dash", "-c", HELPER)

    def change() -> None:
        inside.files.put("app", OLD, 0o600, b"ours\n")
        inside.files.put("app", NEW, 0o600, b"ours\n")
        raise Failure("a", "b", "c", "d")

    with pytest.raises(Failure, match="a"):
        inside.changing(change)
    inside.close()
    assert lasting(host) == before and inside.files.not_put_back == ""


def test_a_container_that_goes_meanwhile_is_said_with_what_could_not_be_put_back(tmp_path: Path) -> None:
    host = someones(tmp_path)
    inside = one(host, "dash", "-c", HELPER)

    def change() -> None:
        inside.files.put("app", OLD, 0o600, b"ours\n")
        process = inside.channel._process
        assert process
        process.kill()
        inside.files.put("app", NEW, 0o600, b"ours\n")

    with pytest.raises(Failure, match="an answer from container 901"):
        inside.changing(change)
    inside.close()
    assert inside.files.not_put_back
    drop_all(host)
    assert host.read(OLD) == "somebody's\n" and not host.exists("/var/lib/homelab")


# -- which container it is ---------------------------------------------------------------------------------------------
LAYER = "ledger"


def asked(host: Host, monkeypatch: pytest.MonkeyPatch, verb: str, *begin: str) -> tuple[int, str]:
    monkeypatch.setattr(
        "remote_scripts.shared.container_system.attach", lambda _ctid, _helper: begin or ("dash", "-c", HELPER)
    )
    module = types.SimpleNamespace(
        Wanted=Nothing,
        read=lambda system, _wanted: {"name": system.files.text("/etc/name"), "inside": system.is_container},
        revert=lambda system, _wanted: {"reverted": "all"},
    )
    request = agent.Request(layer=LAYER, input={}, ctid=901)
    return agent.answered(host.system(), verb, request, cast(types.ModuleType, module))


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A layer's input that has nothing in it."""


def test_a_request_names_the_container_in_which_the_layer_works(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert helper_text.TEXT == HELPER
    inside = Host(tmp_path / "inside")
    inside.write("/etc/name", "901\n")
    host.write("/etc/name", "the host\n")
    monkeypatch.setenv("ROOT", str(inside.root))
    assert asked(host, monkeypatch, "read") == (0, '{"name":"901","inside":true}')
    assert not host.exists("/run/homelab"), "a reading leaves nothing on the host"


@pytest.mark.parametrize(
    ("status", "conf", "wanted"),
    [
        ("status: stopped\n", True, "wanted: container 901 running"),
        (1, False, "wanted: container 901\nfound:  this node has none"),
        ("status: running\n", True, "wanted: an answer from container 901"),
    ],
    ids=["off", "gone", "no shell"],
)
def test_one_that_cant_be_entered_is_said(
    host: Host, monkeypatch: pytest.MonkeyPatch, status: int | str, conf: bool, wanted: str
) -> None:
    (host.root / "etc/pve/lxc").mkdir(parents=True)
    if conf:
        host.write("/etc/pve/lxc/901.conf", "")
    host.programs["pct"] = lambda *_: status
    code, text = asked(host, monkeypatch, "read", "sh", "-c", "exit 1")
    assert code == 1 and text.startswith(wanted), text


def test_what_was_put_into_one_that_is_gone_is_taken_out_by_doing_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.root / "etc/pve/nodes/pve1/lxc").mkdir(parents=True)
    assert asked(host, monkeypatch, "revert", "false") == (0, '{"reverted":"nothing"}')
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    host.write("/etc/pve/nodes/pve2/lxc/901.conf", "")
    code, text = asked(host, monkeypatch, "revert", "false")
    assert code == 1 and "it is on the node pve2 now" in text and "`pct migrate 901 pve1` on pve2" in text
    host.write("/etc/pve/lxc/901.conf", "")
    monkeypatch.setenv("ROOT", "")
    assert asked(host, monkeypatch, "revert") == (0, '{"reverted":"all"}')


def test_one_of_which_it_cant_be_known_is_not_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder isn't there while Proxmox VE's own service restarts."""
    code, text = asked(host, monkeypatch, "revert", "false")
    assert code == 1 and "/etc/pve/nodes can't be read" in text


def test_what_cant_be_written_is_said_and_the_old_one_is_there(inside: Container, host: Host) -> None:
    with pytest.raises(OSError, match="/etc/none/.conf.homelab-tmp in container 901"):
        inside.files.write("/etc/none/conf", b"new\n", 0o644)
    host.write("/etc/folder/in", "")
    with pytest.raises(OSError, match="/etc/folder in container 901"):
        inside.files.write("/etc/folder", b"new\n", 0o644)
    assert inside.files.names("/etc/folder") == ["in"]
    with pytest.raises(OSError, match="/etc/folder in container 901"):
        inside.files.remove("/etc/folder")
    assert host.read("/etc/folder/in") == ""


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("yes", "bytes, and no end"),
        ("cat /dev/zero", "bytes, and no end"),
        ("yes >&2", "bytes, and no end"),
        ('printf "\\n%s begin\\n" $mark; cat /dev/zero', "bytes, and no end"),
        ('printf "\\n%s begin\\n" $mark; echo half; exit 3', "its shell has ended, with exit status 3"),
        ("echo it is gone >&2; kill -9 $$", "its shell has ended, with exit status -9: it is gone"),
        ('printf "\\n%s begin\\nx\\n%s 9999\\n" $mark $mark; exit', "its shell has ended"),
        ('printf "\\n%032d begin\\nx\\n%032d 0\\n" 0 0; exit', "its shell has ended"),
        ("sleep 60", "there is none after 2 s"),
    ],
    ids=["chatter", "zeros", "errors", "no end", "half", "killed", "no status", "another mark", "silence"],
)
def test_an_answer_that_is_none_ends_the_conversation(
    host: Host, monkeypatch: pytest.MonkeyPatch, body: str, found: str
) -> None:
    monkeypatch.setattr(container, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(container, "GREATEST_BYTES", 1_000_000)
    inside = lying(host, body)
    for _ in range(2):  # it isn't begun a second time
        with pytest.raises(Failure) as failed:
            inside.run.ask("true", seconds=1)
        assert failed.value.wanted == "an answer from container 901" and found in failed.value.found, failed.value.found
    with pytest.raises(Failure):
        inside.files.exists("/etc/hosts")


def test_a_helper_that_takes_no_request_in_is_not_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "GRACE_SECONDS", 1.0)
    inside = one(host, "sleep", "60")
    began = time.monotonic()
    with pytest.raises(Failure, match="an answer from container 901"):
        inside.run.ask("cat", stdin=bytes(1_000_000), seconds=1)
    assert time.monotonic() - began < 30


def test_a_container_that_is_not_there_is_said(host: Host) -> None:
    for begin in (["no-such-lxc-attach"], ["sh", "-c", "echo 'lxc-attach: 901: no such namespace' >&2; exit 1"]):
        with pytest.raises(Failure) as failed:
            one(host, *begin).files.read("/etc/os-release")
        assert "No such file" in failed.value.found or "901: no such namespace" in failed.value.found


def test_nothing_of_what_this_process_has_open_is_open_in_there(host: Host, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as opened:
        os.set_inheritable(opened.fileno(), True)
        inside = one(host, "dash", "-c", HELPER)
        assert "secret" not in inside.run.ask("ls", "-l", "/proc/self/fd").text
        inside.channel.close()
