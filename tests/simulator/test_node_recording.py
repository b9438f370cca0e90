"""The lab's API answers in the form in which a node has answered while roads were run (`make test-node RECORD=FOLDER`): HOMELAB_RECORDED names the folder."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host_kit import Host
from tests.simulator.api_replay import Replay
from tests.simulator.recordings import Node
from tests.simulator.test_api_transcripts import is_harmless

FOLDER = os.environ.get("HOMELAB_RECORDED", "")
#: Of an answer's keys, those that one installation has and another hasn't: by hardware, by version, by a guest's disks, by what is configured.
_OF_THE_NODE = frozenset(
    [
        "balloon_min",
        "clipboard",
        "diskread",
        "diskwrite",
        "lock",
        "pool",
        "pressure",
        "proxmox-support",
        "running-machine",
        "running-qemu",
        "tags",
        "template",
    ]
)


@pytest.mark.skipif(not FOLDER, reason="HOMELAB_RECORDED names no folder with a node's recording")
def test_the_lab_answers_in_the_form_of_a_recorded_node(tmp_path: Path) -> None:
    def shapes(body: Any) -> list[dict[str, str]]:
        """What each entry of an answer holds: key -> type of JSON."""
        data = body.get("data") if isinstance(body, dict) else None
        entries = data if isinstance(data, list) else [data]
        return [
            {key: "number" if isinstance(value, int | float) else type(value).__name__ for key, value in one.items()}
            for one in entries
            if isinstance(one, dict)
        ]

    def entries(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
        """What each operation has answered, whatever the ids are."""
        found: dict[str, list[dict[str, str]]] = defaultdict(list)
        for line in lines:
            if line["status"] == 200 and line["method"] == "GET":
                found[re.sub(r"UPID:[^/]+|\b9\d{3}\b", "ID", line["path"])] += shapes(line["body"])
        return found

    def ask(path: str, **params: Any) -> Any:
        reply = node.send("GET", path, params)
        said.append({"method": "GET", "path": path, "status": reply.status, "body": reply.body})
        return reply.body["data"] if reply.status == 200 else []

    # Guests like the tier's, which were made and switched.
    node, said, here = (
        Node(Host(tmp_path / "lab", "recorded-node", running=True)),
        list[dict[str, Any]](),
        "/nodes/pve1",
    )
    tiny = {
        "ostemplate": "local:vztmpl/tiny_1.0_amd64.tar.gz",
        "rootfs": "local:1",
        "ostype": "unmanaged",
        "arch": "amd64",
    }
    guests = [("qemu", 9000), ("qemu", 9002), ("lxc", 9001), ("lxc", 9003)]
    for kind, guest in guests:
        if kind == "qemu":
            node.vm(guest, running=True)
        else:
            node.done("POST", f"{here}/lxc", vmid=guest, memory=64, **tiny)
            node.done("POST", f"{here}/lxc/{guest}/status/start")
    for is_on in (True, False):
        for kind, guest in guests:
            for part in ("", f"/{guest}/config", f"/{guest}/status/current", f"/{guest}/pending"):
                ask(f"{here}/{kind}{part}")
            if is_on:
                node.done("POST", f"{here}/{kind}/{guest}/status/shutdown")
    for path in (
        "/cluster/resources",
        "/version",
        f"{here}/storage",
        f"{here}/storage/local/content",
        f"{here}/hardware/pci",
    ):
        ask(path)
    for task in ask(f"{here}/tasks", source="all"):
        ask(f"{here}/tasks/{task['upid']}/status")
        ask(f"{here}/tasks/{task['upid']}/log")

    lines = [json.loads(line) for line in Path(FOLDER, "node.jsonl").read_text().splitlines()]
    recorded, ours, problems = entries(lines), entries(said), list[str]()
    compared = recorded.keys() & ours.keys()
    for what in sorted(compared):
        theirs, own = recorded[what], ours[what]
        if not theirs or not own:
            continue
        types: dict[str, set[str]] = defaultdict(set)
        for entry in theirs:
            for key, kind in entry.items():
                types[key].add(kind)
        # Which options a guest has is whoever's.
        always = set() if what.endswith("/config") else set.intersection(*map(set, theirs)) - _OF_THE_NODE
        for key, kind in {(key, kind) for entry in own for key, kind in entry.items()}:
            if key in types and kind not in types[key]:
                problems.append(f"{what}: {key} is {kind}, not {' or '.join(sorted(types[key]))}")
            if key not in {*types, *_OF_THE_NODE} and not what.endswith("/config"):
                problems.append(f"{what}: {key}, which the node never has")
        problems += [f"{what}: no {key}, which the node always has" for key in always - set().union(*own)]
    harmless = [line for line in lines if is_harmless("node", line)]
    problems += [text for line in harmless for text in Replay(node).compare(line, "")]
    assert len(compared) > 5 and not problems, "\n".join(sorted(problems))
