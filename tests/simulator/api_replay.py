"""Recorded exchanges with a real node's API, sent again and compared; and the plain client that sends them."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from lab.api.reference import reference
from tests.waiting import PATIENCE

# Answers whose values depend on the moment, the machine or chance: their types are compared.
VOLATILE = frozenset(
    (
        "avail", "available", "cgroup-mode", "cpu", "digest", "disk", "diskread", "diskwrite", "endtime", "free", "idle",
        "loadavg", "maxcpu", "maxdisk", "maxmem", "mem", "memhost", "mhz", "netin", "netout", "pid", "pstart",
        "running-machine", "running-qemu", "snaptime", "starttime", "total", "uptime", "used",
        "used_fraction", "value", "wait",
    )
)  # fmt: skip
# Of those, what the lab computes as a node does where a guest is described, so that it must be right.
COMPUTED = frozenset({"maxcpu", "maxdisk", "maxmem", "maxswap"})
_PLACEHOLDERS = (
    (re.compile(r"BC:24:11(?::[0-9A-F]{2}){3}"), "<mac>"),
    (re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"creation-qemu=[\d.]+,ctime=\d+"), "creation-qemu=<version>,ctime=<seconds>"),
    (re.compile(r"ctime=\d+"), "ctime=<seconds>"),
    (re.compile(r"\.conf\.tmp\.\d+"), ".conf.tmp.<number>"),
    (re.compile(r"snaptime: \d+"), "snaptime: <seconds>"),
    (re.compile(r"UPID:\w+(?::[0-9A-F]{8,9}){3}:"), "UPID:<node, process and time>:"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "<moment>"),
    (re.compile(r"bytes read: \d+ \([^)]*\)"), "bytes read: <size>"),
)
# What the recording node's own installation says in logs, for want of KVM, cgroups and AppArmor.
_NOISE = re.compile(
    r"Prototype mismatch: .*|failed to connect to monitor socket: .*|lxc-start: .*|explicitly configured lxc\.apparmor.*|"
    r"vm \d+ - unable to parse value of .*"
)
_UNORDERED_BY = ("vmid", "key", "id", "storage", "iface", "type")
# What an answer has of a token or a certificate beside it.
_NOT_ROOTS = ("tokenid", "ssl_fingerprint")
_TOKEN = re.compile(r"\w+@(?:pam|pve)!\w+")


@dataclass
class Reply:
    """An answer as it came."""

    status: int
    reason: str
    content_type: str | None
    body: Any


class Client:
    """Plain requests of root@pam to an API.

    Args:
        url: pvedaemon's, such as `http://127.0.0.1:85`.
        ticket: of root@pam.
    """

    def __init__(self, url: str, ticket: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        self._cookie = {"Cookie": f"PVEAuthCookie={quote(ticket, safe='')}"}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, method: str, path: str, params: dict[str, Any] | None = None) -> Reply:
        """One request, form-encoded as proxmoxer does it."""
        encoded = urlencode(params, doseq=True) if params else ""
        target, headers, body = f"/api2/json{quote(path, safe='/:@!')}", dict(self._cookie), None
        if method in ("GET", "DELETE"):
            target += f"?{encoded}" if encoded else ""
        else:
            body = encoded.encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        content = answer.read().decode()
        return Reply(
            answer.status, answer.reason, answer.getheader("Content-Type"), json.loads(content) if content else ""
        )

    def data(self, method: str, path: str, /, **params: Any) -> Any:
        """What a request that must succeed gives."""
        reply = self.send(method, path, {name.replace("_", "-"): value for name, value in params.items()})
        assert reply.status == 200, f"{method} {path} {params}: {reply.status} {reply.reason} {reply.body}"
        return reply.body["data"]


def recorded(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The exchanges of a transcript, with their line numbers, as root@pam has them.

    Who asked, by ticket or token, is root@pam here, also in the ids of tasks. An exchange about users and roles, a refusal that root@pam
    doesn't get, an operation that only the node has and its task are empty: what such a one changes for others is done by the test.
    """
    of_the_nodes = set[str]()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = json.loads(_TOKEN.sub("root@pam", text), object_hook=_of_root)
        if _is_the_nodes_alone(line):
            of_the_nodes.update(re.findall(r"UPID:[^\"/]+", json.dumps(line.get("body"))))
            line = {}
        is_left_out = _is_about_rights(line) or not of_the_nodes.isdisjoint(line.get("path", "").split("/"))
        yield number, {} if is_left_out else line


def _of_root(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in _NOT_ROOTS}


def _is_about_rights(line: dict[str, Any]) -> bool:
    about = f"{line.get('path') or ''} {line.get('shell') or ''}"
    refusal = f"{line.get('reason')} {line.get('body')}".lower()
    return bool(re.search(r"/access\b|\bpveum\b", about)) or line.get("status") in (401, 403) or "only root" in refusal


def _is_the_nodes_alone(line: dict[str, Any]) -> bool:
    """Whether a node has this operation, and the lab, for which nothing of the program asks, hasn't."""
    path, answers = (line.get("url") or line.get("path") or ""), [line, line.get("v8", {}), line.get("v9", {})]
    is_there = any(answer.get("status", 501) != 501 for answer in answers)
    return bool(path) and is_there and reference().find(line.get("method", "GET"), path) is None


@dataclass
class Replay:
    """Sends exchanges, and tells how the answers differ.

    Args:
        client: who sends.
    """

    client: Client
    _upids: dict[str, str] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)

    def compare(self, line: dict[str, Any], treatment: str = "") -> list[str]:
        """Send one exchange's request and return how the answer differs.

        Args:
            treatment: of api_not_held.txt.
        """
        method = line.get("method", "GET")
        path = "/".join(self._upids.get(part, part) for part in (line.get("url") or line["path"]).split("/"))
        params = dict(line.get("params") or {})
        if params.get("digest") in self._digests:
            params["digest"] = self._digests[params["digest"]]
        reply = self.client.send(method, path, params)
        if "/tasks/" in path and path.endswith("/status") and reply.status == line["status"] == 200:
            _as_then(line["body"], reply)
        self._learn(line, reply)
        found = [f"status {reply.status} {reply.reason!r}, recorded {line['status']} {line['reason']!r}"]
        if (reply.status, _neutral(reply.reason)) == (line["status"], _neutral(line["reason"] or "")):
            found = []
        if reply.status == line["status"]:
            if "ctype" in line and reply.content_type != line["ctype"]:
                found.append(f"content type {reply.content_type}, recorded {line['ctype']}")
            found += _compare_bodies(
                self._translated(line["body"]), reply.body, treatment, is_log=path.endswith("/log")
            )
        return [f"{method} {path} {params}: {text}" for text in found]

    def version_differences(
        self, line: dict[str, Any], version: str, upid: str, treatment: str, shell: Callable[[str], tuple[str, int]]
    ) -> list[str]:
        """Send an exchange of which the answers of two versions were recorded, and return how one of them differs.

        Args:
            version: `v8` or `v9`.
            upid: the task that a path means whose UPID was cut.
        """
        answer = line[version]
        if "shell" in line:
            printed, status = shell(line["shell"])
            same = self.lines(printed) == self.lines(answer["out"]) and status == answer["rc"]
            return [] if same else [f"{line['shell']}: {status} {printed!r}, recorded {answer}"]
        path = re.sub(r"UPID:…[^/]*", upid, line["path"])
        if "body" in answer:
            return self.compare({**line, **answer, "path": path}, treatment)
        reply = self.client.send(line["method"], path, line["params"])
        return [] if reply.status == answer["status"] else [f"{path}: {reply.status} {reply.reason}, recorded {answer}"]

    def _learn(self, line: dict[str, Any], reply: Reply) -> None:
        """Take note of what the answer's own ids are here."""
        theirs = line["body"].get("data") if isinstance(line["body"], dict) else None
        ours = reply.body.get("data") if isinstance(reply.body, dict) else None
        if isinstance(theirs, str) and theirs.startswith("UPID:") and isinstance(ours, str):
            self._upids[theirs] = ours
        if isinstance(theirs, dict) and isinstance(ours, dict) and {"digest"} <= theirs.keys() & ours.keys():
            self._digests[theirs["digest"]] = ours["digest"]

    def lines(self, text: str) -> list[str]:
        """What a command printed, without what is different each time, in an order of its own."""
        text = json.dumps(self._translated(text), ensure_ascii=False).replace("<masked>", "<uuid>")
        return sorted(line.strip() for line in _neutral(json.loads(text)).splitlines() if line.strip())

    def compare_json(self, wanted: str, got: str) -> list[str] | None:
        """How two JSON texts differ as answers do; None when they aren't such, or the printed one isn't written alike."""
        if not (wanted.startswith(("{", "[")) and got.startswith(("{", "["))):
            return None
        try:
            answers = [json.loads(text, object_hook=_of_root) for text in (wanted, got)]
        except ValueError:
            return None
        alike = ("\n" in wanted.strip()) == ("\n" in got.strip()) and (": " in wanted) == (": " in got)
        return _compare(answers[0], answers[1], "out") if alike else ["out is laid out in another way"]

    def compare_text(self, wanted: str, got: str) -> list[str]:
        """How what a command printed differs, in any place."""
        return _compare(_neutral(wanted), _neutral(got), "out", exact=True)

    def _translated(self, wanted: Any) -> Any:
        """The recorded body with the ids that tasks have here."""
        text = json.dumps(wanted)
        for theirs, ours in self._upids.items():
            text = text.replace(theirs, ours)
        return json.loads(text)


def _as_then(wanted: Any, reply: Reply) -> None:
    """A task that still ran when it was recorded has ended here."""
    if wanted["data"]["status"] == "running":
        reply.body["data"].pop("exitstatus", None)
        reply.body["data"]["status"] = "running"


def _neutral(text: str) -> str:
    for pattern, name in _PLACEHOLDERS:
        text = pattern.sub(name, text)
    return text


def _compare_bodies(wanted: Any, got: Any, treatment: str, *, is_log: bool) -> list[str]:
    if is_log and all(isinstance(body, dict) and isinstance(body.get("data"), list) for body in (wanted, got)):
        logs = [
            [_neutral(entry["t"]) for entry in body["data"] if not _NOISE.fullmatch(entry["t"])]
            for body in (wanted, got)
        ]
        return _compare(logs[0], logs[1], "log", exact=True)
    if treatment == "types alone":
        return _compare_types(wanted, got, "body")
    if treatment == "another installation":
        return _compare_loosely(wanted, got, "body")
    if treatment == "recorded fields":
        kept = {key: value for key, value in got["data"].items() if key in wanted["data"]}
        return _compare(wanted, {**got, "data": kept}, "body")
    if treatment == "guests alone":
        wanted = {**wanted, "data": [entry for entry in wanted["data"] if "vmid" in entry]}
    if treatment in ("recorded ones", "guests alone"):
        return _compare(wanted, got, "body", subset=True)
    return _compare(wanted, got, "body")


def _compare(wanted: Any, got: Any, where: str, *, exact: bool = False, subset: bool = False) -> list[str]:
    if isinstance(wanted, dict) and isinstance(got, dict):
        found = [f"{where} lacks {key!r}" for key in sorted(set(wanted) - set(got))]
        found += [f"{where} has {key!r}: {got[key]!r}, which wasn't there" for key in sorted(set(got) - set(wanted))]
        guest = "vmid" in wanted
        for key in sorted(set(wanted) & set(got)):
            pending = key == "value" and "key" in wanted and wanted["key"] != "digest"
            if key in VOLATILE and not (guest and key in COMPUTED) and not pending:
                found += _compare_types(wanted[key], got[key], f"{where}.{key}")
            else:
                found += _compare(wanted[key], got[key], f"{where}.{key}", exact=exact, subset=subset)
        if wanted.get("key") == "digest":
            return []
        return found
    if isinstance(wanted, list) and isinstance(got, list):
        return _compare_lists(wanted, got, where, exact=exact, subset=subset)
    if isinstance(wanted, str) and isinstance(got, str):
        sides = [_sorted_words(_neutral(text)) if not exact else text for text in (wanted, got)]
        return [] if sides[0] == sides[1] else [f"{where} is {got!r}, recorded {wanted!r}"]
    same_type = type(wanted) is type(got) or {type(wanted), type(got)} == {int, float}
    return [] if same_type and wanted == got else [f"{where} is {got!r}, recorded {wanted!r}"]


def _sorted_words(text: str) -> str:
    """A list of kinds of content, whose order is Perl's; other texts as they are."""
    words = text.split(",")
    return ",".join(sorted(words)) if {"images", "iso"} <= set(words) else text


def _compare_lists(wanted: list[Any], got: list[Any], where: str, *, exact: bool, subset: bool) -> list[str]:
    if subset:
        names = {entry["id"] for entry in wanted}
        got = [entry for entry in got if entry["id"] in names]
    if len(wanted) != len(got):
        return [f"{where} has {len(got)} entries, recorded {len(wanted)}: {got!r:.400}"]
    keys = [key for key in _UNORDERED_BY if all(isinstance(e, dict) and key in e for e in [*wanted, *got])]
    if wanted and keys and "n" not in wanted[0] and "upid" not in wanted[0]:
        by = keys[0]

        def order(entry: dict[str, Any]) -> str:
            return json.dumps(entry[by])

        wanted, got = sorted(wanted, key=order), sorted(got, key=order)
    pairs = zip(wanted, got, strict=True)
    return [t for n, (w, g) in enumerate(pairs) for t in _compare(w, g, f"{where}[{n}]", exact=exact, subset=subset)]


def _compare_types(wanted: Any, got: Any, where: str) -> list[str]:
    """Same keys, same types; entries of a list need one recorded entry that they are like."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        if set(wanted) != set(got):
            return [f"{where} has the keys {sorted(got)}, recorded {sorted(wanted)}"]
        return [text for key in wanted for text in _compare_types(wanted[key], got[key], f"{where}.{key}")]
    if isinstance(wanted, list) and isinstance(got, list):
        unlike = [entry for entry in got if all(_compare_types(one, entry, where) for one in wanted)]
        return [f"{where}: {entry!r:.300} is like none of those recorded" for entry in unlike]
    numbers = {type(wanted), type(got)} <= {int, float}
    return [] if numbers or type(wanted) is type(got) else [f"{where} is {got!r}, recorded {wanted!r}"]


def _compare_loosely(wanted: Any, got: Any, where: str) -> list[str]:
    """What another node's answer must share: types, and in lists the keys that every recorded entry has."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        found = [f"{where} lacks {key!r}" for key in sorted(set(wanted) - set(got))]
        return found + [t for k in set(wanted) & set(got) for t in _compare_loosely(wanted[k], got[k], f"{where}.{k}")]
    if isinstance(wanted, list) and isinstance(got, list):
        if not wanted or not all(isinstance(entry, dict) for entry in [*wanted, *got]):
            return []
        always = {key: wanted[0][key] for key in set.intersection(*(set(entry) for entry in wanted))}
        return [text for n, entry in enumerate(got) for text in _compare_loosely(always, entry, f"{where}[{n}]")]
    return _compare_types(wanted, got, where)
