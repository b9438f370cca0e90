"""tools/container.py: a container's files and programs; tests/agent/lxc_attach.pl stands for lxc-attach, and a folder of this machine for the container."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from remote_scripts import agent
from remote_scripts.tools import disk
from remote_scripts.tools.container import ContainerSystem
from remote_scripts.tools.done import NOT_FOUND, TIMED_OUT, TOO_MUCH
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests import sampling
from tests.agent.kit import Host, cuts, left_by, watched
from tests.waiting import PATIENCE, wait_until

SHELLS = [["dash"], ["bash", "--posix"], ["busybox", "sh"]]


@pytest.fixture(autouse=True)
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lxc-attach, as it is found."""
    path = tmp_path / "bin/lxc-attach"
    path.parent.mkdir()
    shutil.copy(Path(__file__).parent / "lxc_attach.pl", path)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


#: Programs that change a file, and which of disk's calls each is.
CALLS = {name: name for name in ("chmod", "mkdir", "rmdir")}
CALLS |= {"cat": "create", "cp": "create", "ln": "symlink", "mv": "rename", "rm": "remove", "sync": "flush"}
_SAYS = """#!/bin/sh
(IFS='\t'; printf '%s\n' "$$\t${{0##*/}}\t$*" >{asked})
read -r answer <{answers}
[ "$answer" = go ] || kill -9 0
PATH=${{PATH#*:}}
exec "${{0##*/}}" "$@"
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """disk.WATCH is told of programs in there, each before it does its work, as it is of this process's own calls; if it raises, they are killed."""
    asked, answers, programs = tmp_path / "asked", tmp_path / "answers", tmp_path / "programs"
    programs.mkdir()
    for place in (asked, answers):
        os.mkfifo(place)
    for name in CALLS:
        (programs / name).write_text(_SAYS.format(asked=asked, answers=answers))
        (programs / name).chmod(0o755)
    before = os.environ.get("STAND_IN_PATH")
    monkeypatch.setenv("STAND_IN_PATH", f"{programs}:{before}" if before else str(programs))

    failed: list[Exception] = []

    def listen() -> None:
        # Both ends of each: whoever opens the other one waits for nobody.
        with os.fdopen(os.open(asked, os.O_RDWR)) as questions, os.fdopen(os.open(answers, os.O_RDWR), "w") as said:
            while (line := questions.readline()) != "end\n":
                pid, name, *words = line.rstrip("\n").split("\t")
                if name == "sync":  # -f: whole file systems, of which no test needs to know
                    paths = [] if words[0] == "-f" else words
                else:
                    paths = [words[-1] or str(Path(f"/proc/{pid}/fd/1").readlink())]
                try:
                    for path in paths:
                        disk.WATCH[-1](CALLS[name], path)
                except Exception as error:
                    failed.append(error)
                    said.write("stop\n")
                else:
                    said.write("go\n")
                said.flush()

    listener = threading.Thread(target=listen)
    listener.start()
    yield
    with asked.open("w") as questions:
        questions.write("end\n")
    listener.join()
    for error in failed:
        if not isinstance(error, InterruptedError):
            raise error


def one(host: Host, *, limit: float = 0) -> ContainerSystem:
    (host.root / "run/homelab").mkdir(mode=0o700, exist_ok=True)
    inside = ContainerSystem(901, System(host.root, limit=limit), str(host.root))
    inside.work.lock_seconds = 0.5
    return inside


@pytest.fixture(params=SHELLS, ids=lambda shell: str(shell[0]))
def inside(host: Host, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> System:
    shell: list[str] = request.param
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} isn't on this machine")
    monkeypatch.setenv("STAND_IN_SHELL", " ".join(shell))
    if shell[0] == "busybox":  # as on Alpine, where its applets are all the programs that there are
        applets = tmp_path / "applets"
        applets.mkdir()
        subprocess.run(["busybox", "--install", "-s", str(applets)], check=True)
        monkeypatch.setenv("STAND_IN_PATH", str(applets))
    return one(host)


def test_it_is_lxc_attach_without_this_hosts_environment(
    host: Host, attach: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    assert set(one(host).run.ask("env").text.splitlines()) >= {"LC_ALL=C", "container=lxc"}
    assert "OF_THE_HOST" not in one(host).run.ask("env").text
    attach.write_text('#!/bin/sh\necho "$@"; echo; echo 0')
    begin = "--clear-env -n 901 --keep-var LC_ALL --keep-var PATH -- /bin/sh -c"
    assert one(host).run.ask("true").text.startswith(begin)


def test_a_program_gets_its_words_and_its_input_and_answers(inside: ContainerSystem) -> None:
    words = ("it's", "", "$HOME `id` \\", "é", "*")
    assert inside.run.ask("printf", "%s|", *words).output == b"it's||$HOME `id` \\|\xc3\xa9|*|"
    given = bytes(range(256)) * 2000 + b"\n\n"
    assert inside.run.ask("cat", stdin=given, limit=len(given)).output == given
    assert inside.run.ask("cat").output == b""
    assert inside.run.ask("env", environment={"A": "b c"}).text.count("A=b c") == 1
    done = inside.run.ask("sh", "-c", "echo out; echo why >&2; exit 3")
    assert (done.status, done.output, done.error) == (3, b"out\n", b"why\n")
    assert inside.run.ask("no-such-program").status == NOT_FOUND
    assert inside.run.has("cat") and not inside.run.has("no-such-program")
    assert inside.run.ask("echo", "a\nb").text == "a\nb"


def test_programs_are_found_where_nixos_has_them(inside: ContainerSystem) -> None:
    assert inside.run.ask("sh", "-c", "echo $PATH").text.endswith(":/run/current-system/sw/bin")


def test_what_all_programs_have_in_their_environment_is_on_no_command_line(inside: ContainerSystem) -> None:
    inside.run.environment |= {"https_proxy": "http://u:it's$secret@proxy"}
    done = inside.run.ask("sh", "-c", "env; cat /proc/*/cmdline 2>/dev/null")
    assert done.text.count("it's$secret") == 1 and "https_proxy=http://u:it's$secret@proxy" in done.text


def test_what_is_too_long_is_cut_and_what_hangs_is_killed(inside: ContainerSystem) -> None:
    done = inside.run.ask("head", "-c", "300000", "/dev/zero", limit=1000)
    assert (done.status, done.output) == (TOO_MUCH, bytes(1000))
    assert inside.run.ask("sleep", "60", seconds=1).status == TIMED_OUT
    assert inside.run.ask("echo", "on").text == "on"


def test_what_a_program_leaves_running_is_not_waited_for_and_its_words_are_nobodys_answer(
    inside: ContainerSystem,
) -> None:
    began = time.monotonic()
    left = "(for i in 1 2 3; do sleep 0.2; echo junk; done) & echo mine"
    assert inside.run.ask("sh", "-c", left).text == "mine"
    time.sleep(0.5)
    assert inside.run.ask("echo", "next").text == "next" and time.monotonic() - began < PATIENCE


def test_work_is_logged_on_the_host_and_fails_with_its_last_lines(
    inside: ContainerSystem, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside.run.do("sh", "-c", "echo one; echo two >&2; printf three", doing="working").status == 0
    heading, *lines = host.read("/run/homelab/steps").splitlines()
    assert "container 901: working: sh -c" in heading
    assert [line for line in lines if line.strip()] == ["  one", "  two", "  three"]
    done = inside.run.do("sh", "-c", "seq 1 50000; echo E: the reason; exit 1")
    assert done.status == 1 and done.output.endswith(b"50000\nE: the reason")
    assert "E: the reason" in capsys.readouterr().err
    assert inside.run.do("sh", "-c", "seq 1 50000").status == 0


def is_held(host: Host, name: str) -> bool:
    return subprocess.run(["flock", "-n", f"{host.root}/run/homelab/{name}", "true"], check=False).returncode == 1


def test_work_goes_on_with_its_lock_though_the_agent_is_killed(inside: ContainerSystem, host: Host) -> None:
    """The next run waits for it (layers/run_guard.py). It says more than a pipe holds."""

    def in_process(host: Host, script: str, seconds: float = 60.0, limit: float = 0) -> int:
        """A process that takes the lock, and has a shell in there do something."""
        pid = os.fork()
        if pid == 0:
            try:
                inside = one(host, limit=limit)
                inside.work.take_lock()
                inside.run.do("sh", "-c", script, str(host.root), seconds=seconds)
            finally:
                os._exit(0)
        return pid

    host.write("/run/homelab/up", "anna's up\n")
    # It goes on for a minute at most where this test fails.
    until_told = "while [ ! -e $0/goes-on -a $i -lt 20600 ]; do sleep 0.1; i=$((i+1)); done"
    script = f"touch $0/begun; i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; {until_told}; touch $0/done"
    process = in_process(host, script, limit=600)
    wait_until(lambda: host.exists("/begun"))
    assert host.read("/run/homelab/inside-901") == "anna's up\n"
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert is_held(host, "inside-901") and not host.exists("/done")
    with pytest.raises(Failure, match="to be the only one changing container 901"):
        inside.work.take_lock()
    host.write("/goes-on", "")
    wait_until(lambda: not is_held(host, "inside-901"))
    assert host.exists("/done")


def is_running(word: str) -> bool:
    return subprocess.run(["pgrep", "-f", word], capture_output=True, check=False).returncode == 0


def test_killing_lxc_attach_alone_leaves_its_program_running(inside: ContainerSystem, host: Host) -> None:
    """What the stand-in is held to: seen of the real one."""
    process = inside.run._begin(("sh", "-c", "sleep 1; touch $0/done", str(host.root)), None, 1, 2, b"")
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: host.exists("/done"))


@pytest.mark.parametrize("how", ["ask", "do"])
def test_at_its_limit_all_of_a_program_is_ended(inside: ContainerSystem, host: Host, how: str) -> None:
    mark = f"60.{os.getpid()}{time.monotonic_ns()}"
    script = f"setsid sleep {mark} & sleep {mark}; touch $0/done"
    inside.work.need_folder()
    done = getattr(inside.run, how)("sh", "-c", script, str(host.root), seconds=1)
    assert done.status == TIMED_OUT and not is_running(mark) and not host.exists("/done")


def test_where_the_run_itself_is_killed_for_its_time_nothing_that_was_asked_goes_on(host: Host) -> None:
    mark = f"60.{os.getpid()}{time.monotonic_ns()}"

    def work() -> int:
        one(host).run.ask("sh", "-c", f"sleep {mark}; true", seconds=60)
        return 0

    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os._exit(agent._limited(2, work))
    wait_until(lambda: is_running(mark))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    wait_until(lambda: not is_running(mark))  # a killed process may take a moment to end


def test_several_containers_are_worked_in_at_once(host: Host) -> None:
    first, second = one(host), ContainerSystem(902, System(host.root), str(host.root))
    first.work.take_lock()
    second.work.take_lock()
    assert is_held(host, "inside-901") and is_held(host, "inside-902") and not is_held(host, "lock")
    assert first.run.ask("ls", "-l", "/proc/self/fd").text.count("homelab/") == 0
    first.work.release()
    assert not is_held(host, "inside-901") and is_held(host, "inside-902")


def test_the_folder_for_what_no_boot_keeps_is_roots_alone_in_there(inside: ContainerSystem, host: Host) -> None:
    inside.work.need_folder()
    place = host.root.parent / "in-there"
    (place / "run").mkdir(parents=True)
    inside.set_root(str(place))
    inside.changing(lambda: None)
    assert (place / "run/homelab").stat().st_mode & 0o777 == 0o700


def test_no_file_of_the_host_is_open_in_there(inside: ContainerSystem, host: Host) -> None:
    """Not even /dev/null, whose mode a privileged container's root could change."""
    inside.work.need_folder()
    look = ("sh", "-c", "for i in 0 1 2; do readlink /proc/self/fd/$i; done; ls -l /proc/self/fd; exit 1")
    pipes = r"(/memfd:stdin \(deleted\)|pipe:\[\d+\])\n(pipe:\[\d+\]\n){2}"
    for text in (inside.run.ask(*look).text, inside.run.do(*look, seconds=60).said_text):
        assert re.match(pipes, text) and "homelab/" not in text


def test_root_of_an_unprivileged_container_can_open_the_pipes_of_its_programs(inside: ContainerSystem) -> None:
    """As a package's script opens /dev/stderr; to the host's root alone they would be closed."""
    inside.work.need_folder()
    look = ("sh", "-c", "sleep 0.2; stat -L -c %a /proc/self/fd/1 /proc/self/fd/2")
    assert inside.run.ask(*look).text.split() == inside.run.do(*look, seconds=60).said_text.split() == ["666", "666"]


def test_files_are_read_as_they_are(inside: ContainerSystem, host: Host) -> None:
    content = bytes(range(256)) * 100
    host.write("/etc/it's a file", content)
    (host.root / "etc/link").symlink_to("nowhere")
    os.mkfifo(host.root / "etc/pipe")
    host.write("/etc/lines", "one é\ntwo\n\n")
    files = inside.files
    assert files.read("/etc/it's a file") == content and files.read("/etc/it's a file", 10) == content[:11]
    assert files.text("/etc/lines") == "one é\ntwo" and files.line("/etc/lines") == "one é"
    assert files._disk.digest(Path(files.name("/etc/lines"))) == hashlib.sha256("one é\ntwo\n\n".encode()).hexdigest()
    (host.root / "etc/way").symlink_to("lines")
    assert (files.resolved("/etc/way"), files.resolved("/etc/link")) == ("/etc/lines", "")
    assert files.target("/etc/way") == "lines" and files.target("/etc/lines") == ""
    assert files.need("/etc/none") is None and files.need("/etc/lines", 14) == files.read("/etc/lines")
    with pytest.raises(OSError, match="it is longer than 3 bytes"):
        files.need("/etc/lines", 3)
    with pytest.raises(OSError, match="can't be read"):
        files.need("/etc/pipe")
    assert files.read("/etc/none") is files.read("/etc/pipe") is files.read("/etc") is files.read("/etc/link") is None
    assert files.exists("/etc/link") and not files.exists("/etc/none")
    host.write("/etc/d/a\nb", "")
    assert files.names("/etc/d") == ["a\nb"] and files.names("/etc/none") == []


@pytest.mark.usefixtures("seen")
def test_a_file_is_the_old_or_the_new_one_at_every_call(host: Host) -> None:
    inside = one(host)
    place, old, new = "/etc/app/conf", b"old\n", bytes(range(256)) * 400
    path = host.write(place, old, 0o600)
    victim = host.write("/etc/victim", "kept\n")
    left_over = host.root / "etc/app/.conf.homelab-tmp"  # of a run that was cut short, or somebody has put it there
    left_over.symlink_to(victim)
    calls: list[tuple[str, bytes]] = []
    with watched(lambda call, _path: calls.append((call, path.read_bytes()))):
        inside.files.write(place, new, 0o640)
    assert [call for call, _ in calls] == ["remove", "create", "chmod", "flush", "rename", "flush"]
    assert {content for _, content in calls[:-1]} == {old} and calls[-1][1] == new
    assert path.stat().st_mode & 0o7777 == 0o640 and victim.read_text() == "kept\n"
    assert [one.name for one in path.parent.iterdir()] == ["conf"]
    for stop in range(len(calls)):
        path.write_bytes(old)
        left_over.unlink(missing_ok=True)
        left_over.symlink_to(victim)

        left = iter(range(stop, -1, -1))

        def cut(call: str, _path: str, left: Iterator[int] = left) -> None:
            if next(left) == 0:
                raise InterruptedError(call)

        with watched(cut), pytest.raises(Failure, match="an answer from container 901"):
            inside.files.write(place, new, 0o640)
        assert path.read_bytes() in (old, new)
        inside.files.write(place, new, 0o640)
        assert path.read_bytes() == new and [one.name for one in path.parent.iterdir()] == ["conf"]
    inside.files.remove(place, "/etc/none")
    assert not path.exists()


def test_what_a_killed_run_has_left_at_work_moves_nothing_of_the_next_one(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lxc-attach's program goes on, here in `sync` on a slow disk, until the next run is there as well."""
    shells, goes_on = tmp_path / "shells", tmp_path / "goes-on"
    monkeypatch.setenv("STAND_IN_PATH", str(shells))
    shells.mkdir()
    waits = f"echo $PPID >>{tmp_path}/slow; until [ -e {goes_on}.$PPID ]; do sleep 0.02; done"
    (shells / "sync").write_text(
        f'#!/bin/sh\ncase $1 in *.homelab-tmp) {waits} ;; esac\nPATH=${{PATH#*:}}\nexec sync "$@"\n'
    )
    (shells / "sync").chmod(0o755)

    def slow(number: int) -> str:
        """The shell of the write of that number, once it is in its first sync."""
        shells_of = tmp_path / "slow"
        wait_until(lambda: shells_of.exists() and len(shells_of.read_text().split()) > number)
        return shells_of.read_text().split()[number]

    killed = os.fork()
    if killed == 0:
        with contextlib.suppress(Exception):
            one(host).files.write("/etc/conf", b"of the killed one\n", 0o644)
        os._exit(0)
    first = slow(0)
    os.kill(killed, signal.SIGKILL)
    assert os.waitpid(killed, 0)[1] == signal.SIGKILL
    failed: list[Exception] = []

    def write() -> None:
        try:
            one(host).files.write("/etc/conf", b"of the next one\n", 0o644)
        except Exception as error:
            failed.append(error)

    following = threading.Thread(target=write)
    following.start()
    second = slow(1)
    Path(f"{goes_on}.{first}").touch()
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    assert not host.exists("/etc/conf")
    Path(f"{goes_on}.{second}").touch()
    following.join()
    assert not failed and host.read("/etc/conf") == "of the next one\n"


OLD, LINK, NEW = "/etc/app/old.conf", "/etc/app/link", "/usr/lib/app/new/conf"


def put_all(host: Host, inside: System | None = None) -> None:
    system = inside or one(host)

    def change() -> None:
        system.files.put("app", OLD, 0o600, b"ours\n")
        system.files.put("app", LINK, 0o644, b"ours\n")
        system.files.put("app", NEW, 0o755, b"ours, and no one's before\n")

    system.changing(change)


def drop_all(host: Host) -> None:
    inside = one(host)

    def change() -> None:
        for path in (NEW, LINK, OLD):
            inside.files.drop("app", path)

    inside.changing(change)


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
    put_all(near, near.system())
    assert lasting(host) == lasting(near) != before
    assert host.root.joinpath(f"var/lib/homelab/kept{OLD}").stat().st_mtime_ns == 1_000_000_000
    inside = one(host)
    assert inside.files.of_layer("app") == dict.fromkeys(sorted((OLD, LINK, NEW)), "ok")
    host.write(OLD, "by hand\n")
    assert inside.files.state("app", OLD) == "changed"
    with pytest.raises(ValueError, match="of another system"):
        inside.files.at(OLD)
    drop_all(host)
    edited = [path for path in host.tree("var") if path.startswith(f"var/backups/homelab{OLD}.")]
    assert len(edited) == 1 and host.read(edited[0]) == "by hand\n"
    shutil.rmtree(host.root / "var/backups")
    assert lasting(host) == before
    assert host.root.joinpath(OLD[1:]).stat().st_mtime_ns == 1_000_000_000


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("what", ["put", "drop"])
def test_what_is_cut_short_in_there_is_gone_on_from_and_given_back(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, or by a power cut, before each call; a sample of these."""
    host, wanted = someones(tmp_path / "host"), someones(tmp_path / "wanted")
    before = lasting(host)
    if what == "drop":
        put_all(host)
    found = cuts(host, put_all if what == "put" else drop_all, most=4, name=what)
    assert len(found) >= (12 if sampling.EVERY else 4)
    monkeypatch.delenv("STAND_IN_PATH")  # nobody looks at what follows
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
    inside = one(host)

    def change() -> None:
        inside.files.put("app", OLD, 0o600, b"ours\n")
        inside.files.put("app", NEW, 0o600, b"ours\n")
        raise Failure("a", "b", "c", "d")

    with pytest.raises(Failure, match="a"):
        inside.changing(change)
    assert lasting(host) == before and inside.files.not_put_back == ""


def test_a_container_that_goes_meanwhile_is_said_with_what_could_not_be_put_back(tmp_path: Path, attach: Path) -> None:
    host = someones(tmp_path)
    real = attach.read_text()
    inside = one(host)

    def change() -> None:
        inside.files.put("app", OLD, 0o600, b"ours\n")
        attach.write_text("#!/bin/sh\necho 'lxc-attach: 901: Failed to get init pid' >&2; exit 1\n")
        inside.files.put("app", NEW, 0o600, b"ours\n")

    with pytest.raises(Failure, match="an answer from container 901"):
        inside.changing(change)
    assert inside.files.not_put_back
    attach.write_text(real)
    drop_all(host)
    assert host.read(OLD) == "somebody's\n" and not host.exists("/var/lib/homelab")


# -- which container it is ---------------------------------------------------------------------------------------------
LAYER = "ledger"


def asked(host: Host, verb: str) -> tuple[int, str]:
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
    inside = Host(tmp_path / "inside")
    inside.write("/etc/name", "901\n")
    host.write("/etc/name", "the host\n")
    monkeypatch.setenv("HOMELAB_ROOT", str(inside.root))
    assert asked(host, "read") == (0, '{"name":"901","inside":true}')
    assert not host.exists("/run/homelab"), "a reading leaves nothing on the host"


@pytest.mark.parametrize(
    ("status", "conf", "wanted"),
    [
        ("status: stopped\n", True, "wanted: container 901 running"),
        (1, False, "wanted: container 901\nfound:  no such container on this host"),
        ("status: running\n", True, "wanted: an answer from container 901"),
    ],
    ids=["off", "gone", "no shell"],
)
def test_one_that_cant_be_entered_is_said(host: Host, attach: Path, status: int | str, conf: bool, wanted: str) -> None:
    attach.write_text("#!/bin/sh\nexit 1\n")
    (host.root / "etc/pve/nodes/pve1/lxc").mkdir(parents=True)
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    (host.root / "etc/pve/lxc").symlink_to("local/lxc")
    if conf:
        host.write("/etc/pve/lxc/901.conf", "")
    host.programs["pct"] = lambda *_: status
    code, text = asked(host, "read")
    assert code == 1 and text.startswith(wanted), text


def test_what_was_put_into_one_that_is_gone_is_taken_out_by_doing_nothing(
    host: Host, attach: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attach.read_text()
    attach.write_text("#!/bin/sh\nexit 1\n")
    (host.root / "etc/pve/nodes/pve1/lxc").mkdir(parents=True)
    (host.root / "etc/pve/local").symlink_to("nodes/pve1")
    assert asked(host, "revert") == (0, '{"reverted":"nothing"}')
    host.write("/etc/pve/nodes/pve2/lxc/901.conf", "")
    code, text = asked(host, "revert")
    assert code == 1 and "it is on the node pve2, not on this one" in text and "`pct migrate 901 pve1`" in text
    host.write("/etc/pve/nodes/pve1/lxc/901.conf", "")
    monkeypatch.setenv("HOMELAB_ROOT", "")
    attach.write_text(real)
    assert asked(host, "revert") == (0, '{"reverted":"all"}')


def test_one_of_which_it_cant_be_known_is_not_gone(host: Host) -> None:
    """The folder isn't there while Proxmox VE's own service restarts."""
    code, text = asked(host, "revert")
    assert code == 1 and "/etc/pve" in text


def test_what_cant_be_written_is_said_and_the_old_one_is_there(inside: ContainerSystem, host: Host) -> None:
    inside.files.write("/etc/conf", b"new\n", 0o640)
    assert host.read("/etc/conf") == "new\n" and (host.root / "etc/conf").stat().st_mode & 0o7777 == 0o640
    with pytest.raises(OSError, match="/etc/none/conf in container 901"):
        inside.files.write("/etc/none/conf", b"new\n", 0o644)
    host.write("/etc/folder/in", "")
    with pytest.raises(OSError, match="/etc/folder in container 901"):
        inside.files.write("/etc/folder", b"new\n", 0o644)
    assert inside.files.names("/etc/folder") == ["in"]
    with pytest.raises(OSError, match="/etc/folder in container 901"):
        inside.files.remove("/etc/folder")
    with pytest.raises(OSError, match="it is a folder: '.*/etc/folder in container 901'"):
        inside.changing(lambda: inside.files.put("app", "/etc/folder", 0o644, b"new\n"))
    assert host.read("/etc/folder/in") == "" and not host.exists("/var/lib/homelab")


@pytest.mark.parametrize(
    ("body", "found"),
    sampling.sample(
        [
            ("echo half", "half: no end"),
            ("echo; echo 9999", "no end"),
            ("echo it is gone >&2; kill -9 $$", "it is gone"),
            ("exit 1", "lxc-attach has ended: 1"),
            ("exit 0", "lxc-attach has ended: 0"),
            ("echo; echo 0; exit 1", "lxc-attach has ended: 1"),
        ],
        3,
        "an answer without its end",
    ),
)
def test_an_answer_without_its_end_is_none(host: Host, attach: Path, body: str, found: str) -> None:
    """Such as of a container that stops: lxc-attach's status says too little."""
    attach.write_text(f"#!/bin/sh\n{body}\n")
    with pytest.raises(Failure) as failed:
        one(host).run.ask("true")
    assert failed.value.wanted == "an answer from container 901", found
    with pytest.raises(Failure):
        one(host).files.exists("/etc/hosts")


def test_nothing_runs_on_the_host_in_its_place(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lxc-attach joins no mount namespace of an init that is just ending, as the one that stands for it here never does."""
    monkeypatch.setattr("remote_scripts.tools.run._is_roots_alone", lambda _folder: True)  # where that one is
    inside = ContainerSystem(901, System(Path("/")), str(host.root))
    with pytest.raises(Failure) as failed:
        inside.files.write("/etc/conf", b"ours\n", 0o644)
    assert failed.value.found == "it has just stopped: lxc-attach led to the host instead"
    assert inside.run.do("touch", str(host.root / "etc/conf")).status == 1
    assert inside.run.do("/bin/sh", "-c", f"touch {host.root}/etc/conf").status == 1
    assert "led to the host instead" in capsys.readouterr().err and not host.exists("/etc/conf")
    monkeypatch.setattr(os, "readlink", lambda _: "mnt:[1]")  # of a host that isn't where lxc-attach leads to
    inside = ContainerSystem(901, System(Path("/")), str(host.root))
    inside.files.write("/etc/conf", b"ours\n", 0o644)
    assert host.read("/etc/conf") == "ours\n" and inside.run.do("sh", "-c", "exit 3").status == 3
    assert inside.run.do("no-such-program").status == NOT_FOUND


@pytest.mark.parametrize(
    "body",
    sampling.sample(
        [
            "exec yes",
            "exec cat /dev/zero",
            # Without the pause it would fill memory by the gigabyte until its time is up.
            "while head -c 1000000 /dev/zero; do sleep 0.05; done >&2",
            "exec sleep 60",
        ],
        2,
        "what says no end",
    ),
)
def test_what_says_no_end_or_nothing_is_ended_and_nothing_is_made_of_it(host: Host, attach: Path, body: str) -> None:
    """A frozen container is silent."""
    attach.write_text(f"#!/bin/sh\n{body}\n")
    inside = one(host)
    assert inside.run.ask("true", seconds=0.3).status in (TIMED_OUT, TOO_MUCH)
    inside.work.ends = time.monotonic()
    with pytest.raises(Failure, match="an answer from container 901"):
        inside.files.exists("/etc/hosts")


def test_a_container_that_is_not_there_is_said(host: Host, attach: Path) -> None:
    attach.write_text("#!/bin/sh\necho 'lxc-attach: 901: no such namespace' >&2; exit 1\n")
    with pytest.raises(Failure) as failed:
        one(host).files.read("/etc/os-release")
    assert "901: no such namespace" in failed.value.found


def test_nothing_of_what_this_process_has_open_is_open_in_there(host: Host, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as opened:
        os.set_inheritable(opened.fileno(), True)
        inside = one(host)
        assert "secret" not in inside.run.ask("ls", "-l", "/proc/self/fd").text
