"""What `make test-node` refuses, and what it leaves, with a simulated host as the node, over SSH. The roads themselves: tests/e2e/test_roads.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from homelab.settings import Timeouts
from lab import Lab
from tests.host import SshHost
from tests.node import __main__ as command
from tests.node import record, tier
from tests.node.tier import FILE, WORDS


@pytest.fixture
def node(labs: Callable[[str], Lab], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A node, the file of its owner's, how `tests.node` is called for it, and what pytest was told then."""
    lab, ran = labs("rtx5090"), list[str]()
    ssh, given = lab.connection, lab.root / FILE.lstrip("/")

    def called(*options: str, key: str = ssh["hostKey"]) -> int:
        login = ["--host-key", key, "--identity", ssh["privateKeyFile"]]
        return command.main([f"root@{ssh['host']}:{ssh['port']}", "--yes", *login, *options])

    def runs(told: list[str], plugins: list[Any]) -> int:
        ran.extend(told)
        item = SimpleNamespace(get_closest_marker=lambda name: None, add_marker=lambda mark, **_: ran.append(mark.mark))
        plugins[0].pytest_collection_modifyitems([item])
        told_of = SimpleNamespace(
            nodeid="::test_a_road", duration=0, longrepr=("here", 1, "Skipped: no card (CARD=first)")
        )
        plugins[0].pytest_runtest_logreport(told_of)
        told_of.nodeid, told_of.longrepr = "::test_a_road_with_a_card", None
        for told_of.duration, told_of.failed in ((1, False), (41.6, True)):
            plugins[0].pytest_runtest_logreport(told_of)
        return 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pytest, "main", runs)
    lab.run("qm stop 103; qm destroy 103")
    given.write_text(f"{WORDS}\n")
    yield SimpleNamespace(lab=lab, given=given, called=called, ran=ran)
    lab.reset()


def test_a_node_that_is_not_meant_for_it_is_refused(node: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """With a guest of somebody's, without the file of its owner's or with other words in it, with another key, without a yes."""
    lab, called = node.lab, node.called
    before = lab.snapshot()
    lab.run("qm create 100 --name mail; qm create 9001 --name of-the-tier")
    assert called() == 2 and "found:  on 127.0.0.1: 100\n" in capsys.readouterr().out
    lab.run("qm destroy 100; qm destroy 9001")
    for words in ("", "yes\n"):
        node.given.write_text(words)
        assert called() == 2 and f"echo '{WORDS}' >{FILE}" in capsys.readouterr().out
    node.given.unlink()
    assert called() == 2 and "no such file" in capsys.readouterr().out
    assert called(key="SHA256:" + "A" * 43) == 2
    assert "this may be another machine" in capsys.readouterr().out
    node.given.write_text(f"{WORDS}\n")
    assert node.ran == [] and lab.snapshot() == before


def test_a_report_has_neither_names_nor_addresses(node: SimpleNamespace, tmp_path: Path) -> None:
    lab, called = node.lab, node.called
    assert called("--card", "--slow", "20") == 1
    assert "node" in node.ran and pytest.mark.timeout(7200 * 20).mark in node.ran
    report = json.loads((tmp_path / "node-report.json").read_text())
    assert report["roads"] == {
        "a road": {"result": "not run", "seconds": 0, "why": "no card (CARD=first)"},
        "a road with a card": {"result": "failed", "seconds": 43, "why": ""},
    }
    assert (report["card"]["id"], report["slow"], report["loader"]) == ("10de:2b85", 20, "GRUB")
    table = (tmp_path / "node-report.md").read_text()
    assert "| a road with a card | failed | 43 s |" in table and "20 times slower" in table
    for told in (json.dumps(report), table):
        assert not [one for one in ("127.0.0.1", lab.connection["hostKey"], str(tmp_path)) if one in told]


def test_roads_that_a_node_cannot_run_are_named_with_the_reason(
    node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = node.lab.connection
    known = node.lab.state / "known"
    known.write_text(f"[{ssh['host']}]:{ssh['port']} {ssh['hostKey']}\n")
    host = SshHost(ssh["host"], ssh["port"], Path(ssh["privateKeyFile"]), known)
    found = tier.Tier(host, {})
    assert "simulated" in found.lacks(("quorum",)) and [found.lacks((need,)) for need in ("card", "nvidia")] == ["", ""]
    assert "can't be cut" in found.lacks(("power",))
    host.given, host.cut = "", "off"
    assert found.lacks(("power",)) == ""
    assert "no card was named" in found.lacks(("card",)) and found.lacks(()) == ""
    host.given = "10de:1234"
    assert "no such card" in found.lacks(("nvidia",))
    monkeypatch.setattr(host, "card", lambda: ("0000:ff:00.0", "1234:1111"))
    assert "node for computing" in found.lacks(("card", "render")) and "NVIDIA's" in found.lacks(("nvidia",))
    host.slow = 20
    assert Timeouts.model_validate(found.settings["timeouts"]).reboot == 20 * Timeouts().reboot


def test_what_is_heard_of_the_api_is_recorded_without_secrets() -> None:
    """Two requests of one connection, in parts, and the answer of another connection in between."""
    asked = (
        b"POST /api2/json/nodes/n/qemu?x=1 HTTP/1.1\r\nCookie: PVEAuthCookie=PVE%3Aroot\r\nContent-Length: 32\r\n\r\n"
        b"vmid=9002&cipassword=s&cores=one"
    )
    answer = b'HTTP/1.1 400 Parameter verification failed.\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"data":null}'
    other = b"GET /api2/json/version HTTP/1.1\r\n\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"data": {}}   '
    parts = [
        (40001, 1, asked[:50]),
        (40002, 1, other[0]),
        (40001, 1, asked[50:]),
        (40002, 0, other[1]),
        (40001, 0, answer),
    ]
    heard = [f"{port} {way} {base64.b64encode(data).decode()}" for port, way, data in parts]
    posted, got = record.exchanges(heard)
    assert (posted["status"], posted["reason"]) == (400, "Parameter verification failed.")
    assert posted["params"] == {"vmid": "9002", "cipassword": "<masked>", "cores": "one"}
    assert (got["method"], got["path"], got["body"]) == ("GET", "/version", {"data": {}})
    assert "PVEAuth" not in json.dumps([posted, got])
