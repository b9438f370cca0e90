"""The layer container_toolkit on a folder: an engine's configuration taken back, its restart, and which CDI specification counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from remote_scripts.layers import container_toolkit
from remote_scripts.layers.container_toolkit import Wanted
from remote_scripts.shared import engine_conf
from remote_scripts.shared.engines import Engines
from remote_scripts.shared.packages import Packages, Software
from remote_scripts.shared.symptoms import Context
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System
from tests.agent.kit import Host

DAEMON, CDI, SERVICES = "/etc/docker/daemon.json", "/etc/cdi/nvidia.yaml", "/run/cdi/nvidia.yaml"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
SOFTWARE = Software(context=Context("it", "vm"), lock_seconds=1)

TAKEN_OUT = [
    ("{}", "{}", "{}"),
    ("", "{}", "{}"),
    ('{"a": [1, -2.5e3, true, null, "x\\"}\\\\"], "b": {}, "c": []}', "{}", None),
    ('{"runtimes": {"nvidia": {"path": "x"}}}', "{}", "{}"),
    ('{"runtimes": {"nvidia": {"path": "x"}}}', '{"runtimes": {}}', '{"runtimes": {}}'),
    ('{"runtimes": {"nvidia": {"path": "x"}}}', '{"runtimes": {"nvidia": {"path": "mine"}}}', '{"runtimes": {"nvidia": {"path": "mine"}}}'),
    ('{"features": {"cdi": true}}', '{"features": {"cdi": false}}', '{"features": {"cdi": false}}'),
    ('{"runtimes": {"nvidia": {}, "kata": {"path": "k"}}, "features": {"cdi": true, "buildkit": true}}', "{}", '{"runtimes": {"kata": {"path": "k"}}, "features": {"buildkit": true}}'),
    ('{"default-runtime": "nvidia", "x": "ü"}', "{}", '{"x": "ü"}'),
    ('{"default-runtime": "nvidia", "runtimes": {"nvidia": {}}}', '{"runtimes": {"nvidia": {}}}', None),
    ("[1]", "{}", "[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("now", "kept", "left"), TAKEN_OUT)
def test_our_keys_are_taken_out_of_json_and_all_else_stays(host: Host, now: str, kept: str, left: str | None) -> None:
    host.write(DAEMON, now)
    host.write(f"/var/lib/homelab/kept{DAEMON}", kept)
    text = engine_conf._without_ours(host.system(), DAEMON, f"/var/lib/homelab/kept{DAEMON}")
    assert json.loads(text) == json.loads(now if left is None else left)


@pytest.mark.parametrize("text", ["{", '{"a" 1}', '{"a": 1 "b": 2}', "[1 2]", '{"a": }'])
def test_a_configuration_that_somebody_has_spoilt_is_said_and_left(host: Host, text: str) -> None:
    host.write(DAEMON, text)
    host.write(f"/var/lib/homelab/files/toolkit{DAEMON}", "644 0\n")
    before = host.lasting()
    system = host.system()
    with pytest.raises(Failure) as failure:
        system.changing(lambda: engine_conf.give_back(system, DAEMON))
    assert failure.value.found.startswith("it isn't JSON: ") and host.lasting() == before


@pytest.mark.parametrize(("live", "started"), [("false", ["docker start web", "docker start db"]), ("true", [])])
def test_containers_that_a_restart_stops_are_started_again_and_those_that_run_on_arent(
    host: Host, live: str, started: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def docker(arguments: Sequence[str], _stdin: bytes) -> str:
        if arguments[0] in ("ps", "info"):
            return "web\ndb\n" if arguments[0] == "ps" else f"{live}\n"
        said.append(f"docker {' '.join(arguments)}")
        return ""

    def systemctl(arguments: Sequence[str], _stdin: bytes) -> None:
        said.append(f"systemctl {' '.join(arguments)}")

    host.programs |= {"docker": docker, "systemctl": systemctl}
    system = host.system()
    system.files.set_pending("restart-docker")
    engines = Engines(Packages(system, SOFTWARE, "toolkit"), is_container=False)
    for _ in range(2):
        system.changing(lambda: engines.restart("docker"))
    assert said == ["systemctl restart docker", "systemctl is-active -q docker", *started] and engines.restarted
    assert "web db" in capfd.readouterr().err and not system.files.is_pending("restart-docker")


def test_an_engine_that_doesnt_start_gets_its_configuration_back_and_its_journal_is_told(host: Host) -> None:
    host.write(DAEMON, "{}\n")
    host.programs |= {
        "systemctl": lambda _arguments, _stdin: Done(1, b"Job failed\n"),
        "journalctl": lambda _arguments, _stdin: "no such runtime\n",
        "docker": lambda _arguments, _stdin: "",
    }
    system = host.system()

    def change() -> None:
        engine_conf.begin_change(system, DAEMON)
        host.write(DAEMON, '{"runtimes": {}}')
        assert engine_conf.end_change(system, DAEMON)
        system.files.set_pending("restart-docker")
        Engines(Packages(system, SOFTWARE, "toolkit"), is_container=True).restart("docker")

    with pytest.raises(Failure) as failure:
        system.changing(change)
    assert failure.value.found == "Job failed\nno such runtime" and "keyctl=1" in failure.value.next
    assert host.read(DAEMON) == "{}\n"


@pytest.mark.parametrize("how", ["given back", "edited since", "failed"])
def test_a_configuration_that_is_a_link_stays_one_and_its_file_is_given_back(host: Host, how: str) -> None:
    """nvidia-ctk writes through it."""
    theirs = host.write("/srv/docker.json", '{"dns": []}', 0o640)
    link = host.root / DAEMON[1:]
    link.parent.mkdir()
    link.symlink_to("../../srv/docker.json")
    system = host.system()

    def change() -> None:
        engine_conf.begin_change(system, DAEMON)
        theirs.write_text('{"dns": [], "runtimes": {"nvidia": {}}}')
        assert engine_conf.end_change(system, DAEMON)
        if how == "failed":
            raise OSError("docker doesn't start")

    if how == "failed":
        with pytest.raises(OSError, match="doesn't start"):
            system.changing(change)
    else:
        system.changing(change)
        assert engine_conf.state(system, DAEMON) == "ok"
        if how == "edited since":
            theirs.write_text('{"dns": [], "debug": true, "runtimes": {"nvidia": {}}}')
        system.changing(lambda: engine_conf.give_back(system, DAEMON))
    left = {"dns": [], "debug": True} if how == "edited since" else {"dns": []}
    assert link.readlink().as_posix() == "../../srv/docker.json" and json.loads(theirs.read_text()) == left
    assert theirs.stat().st_mode & 0o777 == 0o640 and not host.exists("/var/lib/homelab")


def test_a_link_that_leads_nowhere_is_said_before_nvidia_ctk_makes_a_file_of_it(host: Host) -> None:
    link = host.root / DAEMON[1:]
    link.parent.mkdir()
    link.symlink_to("../../srv/docker.json")
    system = host.system()
    with pytest.raises(OSError, match="it can't be read"):
        system.changing(lambda: engine_conf.begin_change(system, DAEMON))
    assert not host.exists("/var/lib/homelab")


TOML = "/etc/containerd/config.toml"
EDITED = [
    (DAEMON, '{"dns": []}', '{"dns": [], "runtimes": {"nvidia": {}}}', '{"dns": [], "debug": true, "runtimes": {"nvidia": {}}}'),
    (DAEMON, None, '{"runtimes": {"nvidia": {}}}', '{"debug": true}'),
    (TOML, "root = '/x' # theirs\n", 'imports = ["/etc/containerd/conf.d/*.toml"]\nversion = 2\nroot = "/x"\n', 'imports = ["/etc/containerd/conf.d/*.toml"]\nroot = "/y"\n'),
    (TOML, None, 'imports = ["/etc/containerd/conf.d/*.toml"]\nversion = 2\n', 'imports = ["/etc/containerd/conf.d/*.toml", "/srv/*.toml"]\n'),
]  # fmt: skip


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("left", ["nothing", "half", "whole", "edited"])
@pytest.mark.parametrize(("path", "before", "written", "edited"), EDITED)
def test_what_somebody_edits_after_a_run_that_was_killed_is_given_back_and_else_what_was_there(
    host: Host, path: str, before: str | None, written: str, edited: str, left: str, again: bool
) -> None:
    """`left`: what nvidia-ctk had written by then; `again`: by a run in between that goes on."""
    if before is not None:
        host.write(path, before)
    system = host.system()
    engine_conf.begin_change(system, path)
    system.files.finish()
    if left != "nothing":
        host.write(path, {"half": written[:9], "whole": written, "edited": edited}[left])

    def go_on() -> None:
        engine_conf.begin_change(system, path)
        host.write(path, edited if left == "edited" else written)
        engine_conf.end_change(system, path)

    if again:
        system.changing(go_on)
    system.changing(lambda: engine_conf.give_back(system, path))
    if left != "edited":
        assert (host.read(path) if host.exists(path) else None) == before
    elif path == DAEMON:
        assert json.loads(host.read(path)) == {"debug": True, **({"dns": []} if before else {})}
    else:
        assert host.read(path) == edited
    assert not host.exists("/var/lib/homelab")


def test_a_configuration_of_containerd_in_another_encoding_is_given_back_after_a_killed_run(host: Host) -> None:
    before = "root = '/x' # für mich\n".encode("latin-1")
    host.write(TOML, before)
    system = host.system()
    engine_conf.begin_change(system, TOML)
    system.files.finish()
    host.write(TOML, before + b"version = 2\n")
    system.changing(lambda: engine_conf.give_back(system, TOML))
    assert (host.root / TOML[1:]).read_bytes() == before


class Docker:
    """docker, whose restart stops the containers that run; none of them has a restart policy."""

    def __init__(self, host: Host) -> None:
        self.running, self.starts, self.answers = {"web", "db"}, True, True
        host.programs |= {"docker": self._docker, "systemctl": self._systemctl, "journalctl": lambda *_: ""}

    def _docker(self, arguments: Sequence[str], _stdin: bytes) -> Done | str:
        if arguments[0] == "ps":
            return "".join(f"{name}\n" for name in sorted(self.running)) if self.answers else Done(1, b"", b"hangs\n")
        if arguments[0] == "start":
            self.running.add(arguments[1])
        return "false\n" if arguments[0] == "info" else ""

    def _systemctl(self, arguments: Sequence[str], _stdin: bytes) -> int:
        if arguments[0] == "restart":
            self.running.clear()
            if not self.starts:
                self.starts = True  # with what it had before
                return 1
        return 0


def restart(host: Host) -> None:
    system = host.system()
    system.changing(lambda: Engines(Packages(system, SOFTWARE, "toolkit"), is_container=False).restart("docker"))


def test_containers_run_again_where_docker_didnt_start_with_what_was_configured(host: Host) -> None:
    docker = Docker(host)
    docker.starts = False
    host.system().files.set_pending("restart-docker")
    with pytest.raises(Failure, match="it isn't running; its configuration was put back"):
        restart(host)
    assert docker.running == {"web", "db"}


def test_containers_run_again_where_a_restart_was_cut_short(host: Host) -> None:
    docker = Docker(host)
    host.system().files.set_pending("restart-docker")
    real = host.programs["docker"]

    def killed(arguments: Sequence[str], stdin: bytes) -> Any:
        if arguments[0] == "start":
            raise KeyboardInterrupt
        return real(arguments, stdin)

    host.programs["docker"] = killed
    with pytest.raises(KeyboardInterrupt):
        restart(host)
    host.programs["docker"] = real
    restart(host)
    assert docker.running == {"web", "db"} and not host.exists("/var/lib/homelab")


def test_docker_is_restarted_once_more_where_the_run_failed_later_and_put_its_configuration_back(host: Host) -> None:
    host.write(DAEMON, "{}\n")
    Docker(host)
    system = host.system()

    def change() -> None:
        system.files.set_pending("restart-docker")
        engine_conf.begin_change(system, DAEMON)
        host.write(DAEMON, '{"runtimes": {}}')
        assert engine_conf.end_change(system, DAEMON)
        Engines(Packages(system, SOFTWARE, "toolkit"), is_container=False).restart("docker")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        system.changing(change)
    engines = Engines(Packages(system, SOFTWARE, "toolkit"), is_container=False)
    system.changing(lambda: engines.restart("docker"))
    assert host.read(DAEMON) == "{}\n" and engines.restarted and not host.exists("/var/lib/homelab")


def test_docker_isnt_restarted_while_it_doesnt_say_what_runs(host: Host) -> None:
    docker = Docker(host)
    docker.answers = False
    host.system().files.set_pending("restart-docker")
    with pytest.raises(Failure, match="hangs"):
        restart(host)
    assert docker.running == {"web", "db"}


Specified = Callable[..., tuple[str, int]]


@pytest.fixture
def service(host: Host) -> list[str]:
    """Which service there is: `no`; `yes`, as from 1.18 on; `none`: it makes nothing, as it finds no module."""
    return ["yes"]


@pytest.fixture
def specified(host: Host, service: list[str]) -> Specified:
    """The specification that is named, and how often the service was started for it."""
    host.write("/dev/nvidia0", "")
    host.write(f"{LIBRARIES}/libcuda.so.580.1.2", "")
    restarts: list[str] = []

    def systemctl(arguments: Sequence[str], _stdin: bytes) -> int:
        if arguments[0] == "restart":
            restarts.append(arguments[1])
            if service[0] == "yes":
                host.write(SERVICES, 'hostPath: /usr/lib/libcuda.so.580.1.2\n  name: "all"\n')
        return 1 if arguments[0] == "cat" and service[0] == "no" else 0

    def nvidia_ctk(arguments: Sequence[str], _stdin: bytes) -> None:
        output = next(word.removeprefix("--output=") for word in arguments if word.startswith("--output="))
        path = output.removeprefix(str(host.root))
        host.write(path, 'hostPath: /usr/lib/libcuda.so.580.1.2\n- name: "all"\n')

    def find(arguments: Sequence[str], _stdin: bytes) -> str:
        return "".join(f"{path.name}\n" for path in (host.root / LIBRARIES[1:]).iterdir())

    host.programs |= {"systemctl": systemctl, "nvidia-ctk": nvidia_ctk, "find": find}

    def make(target: Any = "vm", cdi: str = CDI) -> tuple[str, int]:
        restarts.clear()
        system: System = host.system()
        wanted = Wanted(target=target, runtime="podman", software=SOFTWARE, packages=(), driver="580.1.2", cdi=cdi)
        packages = Packages(system, SOFTWARE, "toolkit")
        found = system.changing(lambda: container_toolkit._make_specification(packages, wanted))
        return found, len(restarts)

    return make


def test_the_toolkits_own_service_makes_the_one_specification_and_again_for_libraries_that_are_added(
    host: Host, specified: Specified, service: list[str]
) -> None:
    service[0] = "no"
    assert specified() == (CDI, 0)
    # The toolkit is updated to one that has the service: ours goes.
    service[0] = "yes"
    assert specified() == (SERVICES, 1) and not host.exists(CDI)
    assert specified() == (SERVICES, 0)
    host.write(f"{LIBRARIES}/libnvidia-encode.so.580.1.2", "")
    assert specified() == (SERVICES, 1)
    # After a boot without it.
    (host.root / SERVICES[1:]).unlink()
    assert specified() == (SERVICES, 1)


def test_an_engine_that_needs_none_has_the_services_kept_fresh_too(
    host: Host, specified: Specified, service: list[str]
) -> None:
    assert specified(cdi="") == (SERVICES, 1)
    service[0] = "no"
    (host.root / SERVICES[1:]).unlink()
    assert specified(cdi="") == ("", 0)


@pytest.mark.parametrize(("target", "there"), [("vm", "none"), ("lxc", "yes")])
def test_where_the_service_makes_none_ours_is_made(
    host: Host, specified: Specified, service: list[str], target: str, there: str
) -> None:
    """In a container its condition, a module in modules.dep, doesn't hold."""
    service[0] = there
    assert specified(target) == (CDI, 0 if target == "lxc" else 1)
    assert host.exists(CDI) and not host.exists(SERVICES)
