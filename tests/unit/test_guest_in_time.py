"""A VM that is read while it starts or goes down, and one that is to restart: how long it is waited for, and what is raised at once."""

from __future__ import annotations

import json

import pytest

from homelab.errors import HomelabError, LoginRefusedError, UnreachableError
from homelab.nvidia.resource import GuestReboot, NvidiaSystem
from homelab.nvidia.work import GuestRebootWork, NvidiaSystemWork
from homelab.remote import boots, ssh
from homelab.remote.proxmox import guest_address
from homelab.resources.work import systems
from remote_scripts.both.read_system import SystemFacts
from remote_scripts.tools.plain import to_plain
from tests.unit.hosts import KEY, SYSTEM, seen, values

VERSION = "595.10.02"
LOGIN = {"address": "192.0.2.103", "ssh": {"hostKey": KEY, "agent": True}}
SANDBOX = {"host": "pve", "vmid": 103, "gpus": ["rtx5090"], "nvidia": {}, **LOGIN}
TEXTS = {"hosts": json.dumps({"pve": values()}), "vms": json.dumps({"sandbox": SANDBOX})}
# What each resource of the VM's stack is told.
OF_VM = SYSTEM | {"target": "vm", "system_name": "vms.sandbox", "address": "192.0.2.103"}
INPUTS = GuestReboot.Inputs(**OF_VM, driver=VERSION, timeout=30, step="{}", generation="0")
OFF = UnreachableError(wanted="a connection", found="Connection reset by peer", why="", next="")
NO_LOGIN = LoginRefusedError(wanted="to log in", found="refused: Permission denied", why="", next="")
CUT = HomelabError(wanted="the command to read system to succeed", found="exit status 143", why="", next="")
OLD, NEW = "580.105.08", VERSION

# What a connection meets: it fails, or the guest's boot and the module loaded there; and what the order to restart meets, if it is given.
Met = HomelabError | tuple[str, str] | tuple[str, str, HomelabError | None]


class Guest:
    """One connection after the other; the last one stays so."""

    def __init__(self, *meets: Met) -> None:
        self.left = list(meets)
        self.orders: list[str] = []
        self.agent = ""

    def connect(self, _host: object) -> Connection:
        met = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(met, HomelabError):
            raise met
        return Connection(self, *met)


class Connection:
    def __init__(self, guest: Guest, boot: str, loaded: str, ordered: HomelabError | None = None) -> None:
        self.guest, self.boot, self.loaded, self.ordered = guest, boot, loaded, ordered

    def ask(self, verb: str, _layer: str, _wanted: object, **about: object) -> dict[str, object]:
        assert not about["ctid"] and "proxy" not in about
        if verb == "apply":
            self.guest.orders.append(self.boot)
            if self.ordered:
                raise self.ordered
            return {"reboot": "yes"}
        if self.loaded == "cut":
            raise CUT
        return READING | {"boot_id": self.boot, "loaded": self.loaded, "agents": {"homelab-lab": self.guest.agent}}


KERNEL = "6.8.0-90-generic"
FACTS = SystemFacts("ubuntu", "24.04", (KERNEL,), KERNEL, secure_boot=False, cards=("10de:2b85",))
READING: dict[str, object] = to_plain(seen(**vars(FACTS) | {"nouveau": False, "runtimes": ()}))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(boots, "REFUSED_SECONDS", 0.001)


def restarted(
    monkeypatch: pytest.MonkeyPatch, *meets: Met, timeout: float = 30
) -> tuple[GuestReboot.Outputs, list[str]]:
    """What comes of it, and in which boots a restart was asked for."""
    guest = Guest(*meets)
    monkeypatch.setattr(ssh, "Session", guest.connect)
    inputs = GuestReboot.Inputs(**{**vars(INPUTS), "timeout": timeout})
    return GuestRebootWork(TEXTS).create(inputs), guest.orders


def test_a_guest_restarts_once_and_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, tuple[tuple[Met, ...], list[str]]] = {
        "it has the driver": ((("1", NEW),), []),
        "asked and done": ((("1", OLD), ("1", OLD), OFF, OFF, ("2", NEW)), ["1"]),
        "on its way down by an earlier run: it breaks connections": ((OFF, ("1", OLD, OFF), OFF, ("2", NEW)), ["1"]),
        "lost, and it goes on: asked again": ((("1", OLD, OFF), ("1", OLD), OFF, ("2", NEW)), ["1", "1"]),
        "it refuses whoever isn't root, down and up again": ((("1", OLD), NO_LOGIN, OFF, NO_LOGIN, ("2", NEW)), ["1"]),
        "the same, and its answer was lost": ((("1", OLD, OFF), NO_LOGIN, OFF, NO_LOGIN, ("2", NEW)), ["1"]),
        "it ends a script on its way down": ((("1", OLD), ("1", "cut"), OFF, ("2", NEW)), ["1"]),
        "it starts, and refuses": ((NO_LOGIN, ("1", NEW)), []),
    }
    for case, (meets, orders) in cases.items():
        outputs, asked = restarted(monkeypatch, *meets)
        assert asked == orders, case
        assert outputs.boot_id == ("2" if orders else "1"), case


def test_a_restart_that_brought_nothing_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for meets in ((("1", OLD), OFF, ("2", OLD)), (("1", OLD, OFF), OFF, ("2", OLD))):
        guest = Guest(*meets)
        monkeypatch.setattr(ssh, "Session", guest.connect)
        with pytest.raises(HomelabError, match=f"driver {VERSION} in use after a reboot"):
            GuestRebootWork(TEXTS).create(INPUTS)
        assert guest.orders == ["1"]


def test_what_no_waiting_mends_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "NO_LOGIN_SECONDS", 0.02)
    refused = HomelabError(wanted="a reboot of this system", found="no", why="", next="")
    cases: list[tuple[tuple[Met, ...], str]] = [
        ((NO_LOGIN,), "refused: Permission denied"),  # long before the time is up
        ((("1", "cut"),), "exit status 143"),
        ((("1", OLD, refused),), "a reboot of this system"),
        ((("1", OLD), OFF), "vms.sandbox in reach"),
        ((("1", OLD), ("1", OLD)), "it has not gone down"),
        ((("1", OLD), NO_LOGIN), "refused: Permission denied"),
    ]
    for meets, said in cases:
        with pytest.raises(HomelabError, match=said):
            restarted(monkeypatch, *meets, timeout=30 if meets[0] is NO_LOGIN or "cut" in str(meets) else 0.05)


@pytest.mark.parametrize("there", ["1", "2", ""])
def test_a_refresh_sees_a_vms_agent_that_is_missing_or_another_one(
    there: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Guest(("1", NEW))
    guest.agent = there
    monkeypatch.setattr(ssh, "Session", guest.connect)
    # An older version's state knows fewer layers.
    before = NvidiaSystem.Outputs(facts=FACTS, generation={"packages": 3}, stale=False)
    inputs = NvidiaSystem.Inputs(**OF_VM, agent="1", agent_owner="homelab-lab")
    after = NvidiaSystemWork(TEXTS).read(inputs, before)
    assert after.stale == (there != "1")
    assert after.generation == {"packages": 4, "boot": 1, "toolkit": 0}
    assert ("agent there is missing" in capsys.readouterr().out) == (there != "1")


@pytest.mark.parametrize(
    ("interfaces", "address"),
    [
        ([("lo", "ipv4", "127.0.0.1"), ("eth0", "ipv6", "fe80::1"), ("eth0", "ipv4", "192.0.2.7")], "192.0.2.7"),
        ([("eth0", "ipv4", "169.254.3.4"), ("eth1", "ipv4", "192.0.2.7"), ("eth2", "ipv4", "192.0.2.8")], "192.0.2.7"),
        ([("lo", "ipv4", "127.0.0.1"), ("eth0", "ipv6", "fe80::1")], ""),
        ([], ""),
    ],
)
def test_the_address_that_a_guests_agent_names_is_one_by_which_others_reach_it(
    interfaces: list[tuple[str, str, str]], address: str
) -> None:
    answer = [
        {"name": name, "ip-addresses": [{"ip-address-type": kind, "ip-address": text}]}
        for name, kind, text in interfaces
    ]
    assert guest_address.first_of([{"name": "sit0"}, *answer]) == address
