"""The API through the SSH connection, on hosts that make it harder: what still works, and what each trouble is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from homelab.errors import HomelabError, UnansweredError, UnreachableError
from homelab.remote import logins, loop, ssh
from homelab.remote.proxmox.api import Api
from lab import Lab
from tests import connections
from tests.lab.stack_kit import Quick, client
from tests.waiting import wait_until

CONFIG = "nodes/pve/qemu/103/config"


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    connections.end_all()  # with their tickets; another's sshd_config counts for what is opened under it
    yield lab
    connections.end_all()


def forbid_forwarding(lab: Lab) -> None:
    lab.run("mkdir -p $HOMELAB_ROOT/etc/ssh && echo AllowTcpForwarding no >$HOMELAB_ROOT/etc/ssh/sshd_config")


def changed(api: Api, cores: int) -> int:
    api.put(CONFIG, "", cores=cores)
    return int(api.get(CONFIG, "")["cores"])


def test_where_sshd_forbids_forwarding_bash_is_the_way(lab: Lab) -> None:
    forbid_forwarding(lab)
    assert changed(client(lab), 3) == 3
    lab.run("systemctl stop pvedaemon")
    with pytest.raises(HomelabError) as refused:
        client(lab).put(CONFIG, "", cores=2)
    assert "nobody listens" in refused.value.found and "nothing was asked" in refused.value.why


def let_ops_log_in(lab: Lab, *, by_sudo: bool) -> None:
    lab.run(
        "apt-get update; apt-get install -y sudo; echo ops:x:1000:1000::/home/ops:/bin/bash >>$HOMELAB_ROOT/etc/passwd;"
        "mkdir -p $HOMELAB_ROOT/home/ops/.ssh $HOMELAB_ROOT/etc/sudoers.d"
    )
    key = Path(f"{lab.connection['privateKeyFile']}.pub").read_text()
    (lab.root / "home/ops/.ssh/authorized_keys").write_text(key)
    if by_sudo:
        (lab.root / "etc/sudoers.d/ops").write_text("ops ALL=(ALL) NOPASSWD: ALL\n")


@pytest.mark.parametrize("forwards", [True, False])
def test_a_user_with_sudo_is_root_there_too(lab: Lab, forwards: bool) -> None:
    let_ops_log_in(lab, by_sudo=True)
    if not forwards:
        forbid_forwarding(lab)
    assert changed(client(lab, user="ops"), 4) == 4


def test_what_only_root_may_set_is_set(lab: Lab) -> None:
    api = client(lab)
    api.put(CONFIG, "", args="-cpu host,kvm=off", hostpci1="host=0000:01:00.0,romfile=a.rom")
    assert api.get(CONFIG, "")["hostpci1"] == "host=0000:01:00.0,romfile=a.rom"


def test_a_pvedaemon_that_restarts_is_waited_for(lab: Lab) -> None:
    lab.run("systemctl stop pvedaemon")
    assert changed(client(lab, Quick({1: lambda: lab.run("systemctl start pvedaemon")})), 3) == 3


def test_a_clock_that_has_jumped_takes_a_new_ticket(lab: Lab) -> None:
    api = client(lab)
    assert api.get("version", "")
    lab.fault("clock-ahead", 121 * 60)
    assert changed(api, 3) == 3


def test_a_change_whose_connection_is_lost_may_have_been_carried_out(lab: Lab) -> None:
    """Proxmox VE carries it out all the same."""
    api = client(lab)
    digest = api.get(CONFIG, "")["digest"]
    lab.fault("api-seconds", 0.5)
    work = loop.submit(_lose_in(0.25))
    with pytest.raises(HomelabError, match="isn't known whether a change was carried out"):
        api.put(CONFIG, "", cores=3, digest=digest)
    work.result()
    lab.fault("api-seconds", None)
    wait_until(lambda: api.get(CONFIG, "")["cores"] == 3)


def test_a_connection_that_ends_while_it_is_asked_says_nothing_of_pvedaemon(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = client(lab)
    api.get("version", "")
    open_connection = asyncssh.SSHClientConnection.open_connection

    async def ending(self: asyncssh.SSHClientConnection, *arguments: Any, **options: Any) -> Any:
        self.abort()
        return await open_connection(self, *arguments, **options)

    monkeypatch.setattr(asyncssh.SSHClientConnection, "open_connection", ending)
    with pytest.raises(HomelabError, match="lost in the middle"):
        api.put(CONFIG, "", cores=3)


async def _lose_in(seconds: float) -> None:
    await asyncio.sleep(seconds)
    (login,) = logins.of_process().values()
    assert login.connection is not None
    login.connection.ssh.abort()


def disable_root(lab: Lab) -> None:
    lab.run("echo 'user:root@pam:0:0:::::' >$HOMELAB_ROOT/etc/pve/user.cfg")


TROUBLES: dict[str, tuple[Callable[[Lab], object], str, str]] = {
    "root@pam is disabled": (disable_root, "user 'root@pam' is disabled", "a user that is disabled"),
    "pve-cluster is stopped": (
        lambda lab: lab.run("systemctl stop pve-cluster"),
        "Connection refused",
        "status pve-cluster",
    ),
    "pvedaemon is stopped": (lambda lab: lab.run("systemctl stop pvedaemon"), "nobody listens", "status pvedaemon"),
    "no quorum": (lambda lab: lab.fault("no-quorum", True), "Permission denied", "pvecm status"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_has_its_sentence(lab: Lab, trouble: str) -> None:
    cause, found, step = TROUBLES[trouble]
    cause(lab)
    try:
        with pytest.raises(HomelabError) as refused:
            client(lab).put(CONFIG, "", cores=3)
    finally:
        lab.fault("no-quorum", None)
        lab.run("systemctl start pve-cluster pvedaemon")
    assert found in refused.value.found and step in refused.value.next


def test_a_user_whom_sudo_refuses_is_told_what_to_allow(lab: Lab) -> None:
    let_ops_log_in(lab, by_sudo=False)
    with pytest.raises(HomelabError, match="allow this user `sudo -n bash`"):
        client(lab, user="ops").get("version", "")


def test_a_host_that_is_away_is_that_and_not_its_api(lab: Lab) -> None:
    api = client(lab)
    gone = api.host.model_copy(update={"address": "127.0.0.2", "ssh": api.host.ssh.model_copy(update={"port": 1})})
    with pytest.raises(UnreachableError) as away:
        Api(gone, "pve", clock=Quick()).put(CONFIG, "", cores=3)
    assert isinstance(away.value, UnansweredError) and not away.value.sent  # for what is noted of the change


def test_a_host_that_is_away_for_a_moment_is_waited_for(lab: Lab) -> None:
    host = client(lab).host
    at = {"port": 1}

    class Moving(ssh.Session):
        def connect(self, *, anew: bool = False) -> None:
            ssh.Session(host.model_copy(update={"ssh": host.ssh.model_copy(update=at)})).connect(anew=anew)

    api = client(lab, Quick({1: at.clear}))
    api._connection._session = Moving(host)
    assert changed(api, 3) == 3
