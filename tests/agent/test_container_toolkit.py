"""The layer container_toolkit on a folder: an engine's configuration taken back, its restart, and which CDI specification counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from remote_scripts.apt.apt import Apt
from remote_scripts.both.container_toolkit import Wanted
from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import Context
from remote_scripts.layers import container_toolkit
from remote_scripts.nvidia import engine_conf, engines
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from tests.agent.kit import Host

DAEMON, CDI, SERVICES = "/etc/docker/daemon.json", "/etc/cdi/nvidia.yaml", "/run/cdi/nvidia.yaml"
SOFTWARE = Software(context=Context("it", "vm"), lock_seconds=1)
PODMAN = Wanted(target="vm", runtime="podman", software=SOFTWARE, driver="580.1.2", cdi=CDI)
RUNTIME = {"args": [], "path": "nvidia-container-runtime"}


@pytest.mark.parametrize(("now", "left"), [
    ("{}", {}),
    ('{"a": [1, -2.5e3, true, null, "x\\"}\\\\"], "b": {}, "c": []}', None),
    ('{"runtimes": {"nvidia": {"path": "x"}}}', {}),
    ('{"runtimes": {"nvidia": {}, "kata": {"path": "k"}}, "features": {"cdi": true, "buildkit": true}}', {"runtimes": {"kata": {"path": "k"}}, "features": {"buildkit": True}}),
    ('{"default-runtime": "nvidia", "x": "ü"}', {"x": "ü"}),
    ("[1]", None),
])  # fmt: skip
def test_our_keys_are_taken_out_of_json_and_all_else_stays(now: str, left: Any) -> None:
    assert json.loads(engine_conf._without_runtime(now.encode())) == (json.loads(now) if left is None else left)


class Conf:
    """docker's configuration."""

    def __init__(self, host: Host) -> None:
        (host.root / "etc/docker").mkdir(parents=True)  # of the engine's package
        self.system = host.system()

    def configure(self, *, cdi: bool = False) -> None:
        self.system.changing(lambda: engine_conf.configure(self.system, "it", cdi=cdi))

    def give_back(self) -> None:
        self.system.changing(lambda: engine_conf.give_back(self.system))
        self.system.files.done_with("restart-docker")
        self.system.files.finish()


@pytest.fixture
def conf(host: Host) -> Conf:
    return Conf(host)


def test_docker_gets_the_runtime_beside_what_is_there_and_once(host: Host, conf: Conf) -> None:
    before = '{"runtimes": {"kata": {"path": "k"}},\n "dns": ["192.0.2.1"]}'
    host.write(DAEMON, before)
    conf.configure(cdi=True)
    runtimes = {"kata": {"path": "k"}, "nvidia": RUNTIME}
    assert json.loads(host.read(DAEMON)) == {"runtimes": runtimes, "dns": ["192.0.2.1"], "features": {"cdi": True}}
    written = host.lasting()
    conf.configure(cdi=True)
    assert host.lasting() == written
    conf.give_back()
    assert host.read(DAEMON) == before and not host.exists("/var/lib/homelab")


def test_docker_that_its_owner_has_configured_is_neither_written_nor_restarted(host: Host, conf: Conf) -> None:
    host.write(DAEMON, '{ "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}} }')
    before = host.lasting()
    conf.configure()
    assert host.lasting() == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"runtimes": 1}'])
def test_a_file_that_docker_could_not_read_is_refused_and_left(host: Host, conf: Conf, text: str) -> None:
    host.write(DAEMON, text)
    with pytest.raises(Failure, match="daemon.json as a JSON object"):
        conf.configure()
    assert host.read(DAEMON) == text and not host.exists("/var/lib/homelab")


@pytest.mark.parametrize("text", ["{", '{"a" 1}', "[1 2]", '{"a": }'])
def test_a_configuration_that_somebody_has_spoilt_is_left(host: Host, conf: Conf, text: str) -> None:
    conf.configure()
    host.write(DAEMON, text)
    conf.give_back()
    assert host.read(DAEMON) == text and not host.exists("/var/lib/homelab")


def test_an_engine_that_doesnt_start_gets_its_configuration_back_and_its_journal_is_told(
    host: Host, conf: Conf
) -> None:
    host.write(DAEMON, "{}\n")
    host.write("/usr/bin/dockerd", "")
    host.programs |= {
        "systemctl": lambda _arguments, _stdin: Done(1, b"Job failed\n"),
        "journalctl": lambda _arguments, _stdin: "no such runtime\n",
    }
    conf.system.is_container = True
    apt = Apt(conf.system, SOFTWARE, "toolkit")

    def change() -> None:
        engine_conf.configure(conf.system, "it", cdi=False)
        assert "nvidia" in host.read(DAEMON)
        engines.tell_docker(apt)

    with pytest.raises(Failure) as failure:
        conf.system.changing(change)
    assert failure.value.found == "Job failed\nno such runtime" and "keyctl=1" in failure.value.next
    assert host.read(DAEMON) == "{}\n"


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_configuration_that_is_a_link_comes_back_as_one_with_its_mode(
    host: Host, conf: Conf, *, is_edited: bool
) -> None:
    theirs = host.write("/srv/docker.json", '{"dns": []}', 0o640)
    link = host.root / DAEMON[1:]
    link.symlink_to("../../srv/docker.json")
    conf.configure()
    assert json.loads(host.read(DAEMON)) == {"dns": [], "runtimes": {"nvidia": RUNTIME}}
    assert (link.stat().st_mode & 0o777, theirs.read_text()) == (0o640, '{"dns": []}')
    if is_edited:
        link.write_text('{"debug": true, "runtimes": {"nvidia": {}}}')
    conf.give_back()
    assert link.is_symlink() != is_edited and not host.exists("/var/lib/homelab")
    assert json.loads(link.read_text()) == json.loads('{"debug": true}' if is_edited else '{"dns": []}')
    kept = list(host.root.glob("var/backups/homelab/etc/docker/daemon.json.*"))
    assert [path.read_text() for path in kept] == ['{"debug": true, "runtimes": {"nvidia": {}}}'] * is_edited


def test_a_link_that_somebody_has_put_in_its_place_since_stays_with_the_files_mode(host: Host, conf: Conf) -> None:
    conf.configure()
    theirs = host.write("/srv/docker.json", '{"debug": true, "runtimes": {"nvidia": {}}}', 0o640)
    link = host.root / DAEMON[1:]
    link.unlink()
    link.symlink_to("../../srv/docker.json")
    conf.give_back()
    assert link.is_symlink() and json.loads(theirs.read_text()) == {"debug": True}
    assert theirs.stat().st_mode & 0o777 == 0o640 and not host.exists("/var/lib/homelab")


def test_a_link_that_leads_nowhere_is_said_before_anything_is_changed(host: Host, conf: Conf) -> None:
    link = host.root / DAEMON[1:]
    link.symlink_to("../../srv/docker.json")
    with pytest.raises(OSError, match="it is no file"):
        conf.configure()
    assert not host.exists("/var/lib/homelab")


class Docker:
    """docker, which learns of runtimes as it runs, and of CDI when it is started."""

    def __init__(self, host: Host) -> None:
        self.told: list[str] = []
        host.write("/usr/bin/dockerd", "")
        host.programs |= {"systemctl": self._systemctl, "journalctl": lambda *_: ""}

    def _systemctl(self, arguments: Sequence[str], _stdin: bytes) -> int:
        self.told += [arguments[0]] if "re" in arguments[0] else []
        return 0


@pytest.mark.parametrize(("cdi", "verb"), [(False, "reload-or-restart"), (True, "restart")])
def test_docker_takes_its_configuration_over_once_and_is_restarted_for_cdi_alone(
    host: Host, conf: Conf, capfd: pytest.CaptureFixture[str], verb: str, *, cdi: bool
) -> None:
    docker = Docker(host)
    apt = Apt(conf.system, SOFTWARE, "toolkit")
    conf.configure(cdi=cdi)
    assert [conf.system.changing(lambda: engines.tell_docker(apt, cdi=cdi)) for _ in range(2)] == [True, False]
    assert docker.told == [verb] and ("no restart policy stay off" in capfd.readouterr().err) is cdi
    conf.system.changing(lambda: engine_conf.give_back(conf.system))
    assert conf.system.changing(lambda: engines.tell_docker(apt)) and not host.exists("/var/lib/homelab")


def test_docker_is_told_once_more_where_the_run_failed_later_and_put_its_configuration_back(
    host: Host, conf: Conf
) -> None:
    host.write(DAEMON, "{}\n")
    Docker(host)
    apt = Apt(conf.system, SOFTWARE, "toolkit")

    def change() -> None:
        engine_conf.configure(conf.system, "it", cdi=False)
        engines.tell_docker(apt)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        conf.system.changing(change)
    assert conf.system.changing(lambda: engines.tell_docker(apt))
    assert host.read(DAEMON) == "{}\n" and not host.exists("/var/lib/homelab")


Specified = Callable[..., tuple[str, int]]


@pytest.fixture
def service(host: Host) -> list[str]:
    """Which service there is: `no`; `yes`, as from 1.18 on; `none`: it makes nothing, as it finds no module."""
    return ["yes"]


@pytest.fixture
def given() -> list[str]:
    """What nvidia-ctk was told last."""
    return []


@pytest.fixture
def specified(host: Host, service: list[str], given: list[str]) -> Specified:
    """The specification that is named, and how often the service was started for it."""
    restarts: list[str] = []

    def systemctl(arguments: Sequence[str], _stdin: bytes) -> int:
        if arguments[0] == "restart":
            restarts.append(arguments[1])
            if service[0] == "yes":
                host.write(SERVICES, 'hostPath: /usr/lib/libcuda.so.580.1.2\n  name: "all"\n')
        return 1 if arguments[0] == "cat" and service[0] == "no" else 0

    def nvidia_ctk(arguments: Sequence[str], _stdin: bytes) -> None:
        given[:] = arguments
        output = next(word.removeprefix("--output=") for word in arguments if word.startswith("--output="))
        path = output.removeprefix(str(host.root))
        host.write(path, 'hostPath: /usr/lib/libcuda.so.580.1.2\n- name: "all"\n')

    host.programs |= {"systemctl": systemctl, "nvidia-ctk": nvidia_ctk}

    def make(target: Any = "vm", cdi: str = CDI) -> tuple[str, int]:
        restarts.clear()
        system: System = host.system()
        wanted = replace(PODMAN, target=target, cdi=cdi, cdi_options=("--without-groups",), options_since="1.19.1")
        wanted = replace(wanted, podman_reads="5.1")
        apt = Apt(system, SOFTWARE, "toolkit")
        found = system.changing(lambda: container_toolkit._make_specification(apt, wanted))
        return found, len(restarts)

    return make


def test_docker_gets_its_configuration_back_when_podman_is_meant(host: Host, conf: Conf, specified: Specified) -> None:
    host.write(DAEMON, '{"dns": []}')
    Docker(host)
    conf.configure()
    assert container_toolkit.apply(host.system(), PODMAN).cdi == CDI and host.read(DAEMON) == '{"dns": []}'


def test_the_toolkits_own_service_makes_the_one_specification_anew_each_time(
    host: Host, specified: Specified, service: list[str]
) -> None:
    """It doesn't see libraries that are added."""
    service[0] = "no"
    assert specified() == (CDI, 0)
    # The toolkit is updated to one that has the service: ours goes.
    service[0] = "yes"
    for _ in range(2):
        assert specified() == (SERVICES, 1) and not host.exists(CDI)


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


@pytest.mark.parametrize(
    ("podman", "toolkit", "without_groups"),
    [
        ("4.9.3+ds1-1", "1.19.1-1", True),
        ("4.9.3+ds1-1", "1.20.0-1", True),
        ("4.9.3+ds1-1", "1.19.0-1", False),
        ("5.7.0+ds2-1", "1.20.0-1", False),
        ("", "1.20.0-1", False),
    ],
)
def test_an_old_podman_gets_a_specification_without_groups_from_a_toolkit_that_writes_them(
    host: Host, specified: Specified, given: list[str], podman: str, toolkit: str, without_groups: bool
) -> None:
    """The toolkit's own service knows of no options: what it makes is left out."""
    lines = {"podman": podman, "nvidia-container-toolkit": toolkit}
    host.programs["dpkg-query"] = lambda *_: "".join(
        f"{name}\tinstalled\t{version}\tamd64\n" for name, version in lines.items() if version
    )
    path, restarts = specified()
    assert ("--without-groups" in given, path, restarts) == ((True, CDI, 0) if without_groups else (False, SERVICES, 1))
