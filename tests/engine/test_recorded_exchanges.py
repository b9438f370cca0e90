"""The plugin in use, stand-in or real, answers as pulumi-command 1.2.1 did: its recorded exchanges, replayed.

What belongs to the machine of the recording is substituted (keys, the host's port, the port on which nobody
listens), and an id is compared by its form, since half of it is random.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.plugin_process import SECRET_SIGNATURE, Answer, Json, Plugin
from tests.engine.ssh_host import SshHost, refusing_port

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "command_plugin"
NAMES = [
    *("create", "update", "replace", "copy", "local"),
    *("fail", "failenv", "nodial", "badkey", "badauth", "killed"),
]
RECORDED_PORT, RECORDED_REFUSING_PORT = 2022, 2999
HEX_TAIL = re.compile(r"[0-9a-f]{8}$")


@dataclasses.dataclass(frozen=True)
class Machine:
    """What stands in for the recording's machine."""

    host: SshHost
    refusing_port: int

    def translate(self, value: Any) -> Any:
        """A recorded value as it would be on this machine."""
        if isinstance(value, dict):
            return {key: self.translate_port(key, self.translate(inner)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.translate(inner) for inner in value]
        if isinstance(value, str):
            value = value.replace("<host key>", self.host.host_key)
            value = value.replace("<private key>", self.host.private_key)
            return value.replace(f":{RECORDED_REFUSING_PORT}:", f":{self.refusing_port}:")
        return value

    def translate_port(self, key: str, value: Any) -> Any:
        ports = {RECORDED_PORT: self.host.port, RECORDED_REFUSING_PORT: self.refusing_port}
        return ports[value] if key == "port" else value


def normal(method: str, answer: Answer) -> Answer:
    """An answer without what may differ from run to run."""
    response, error = copy.deepcopy(answer.response), answer.error
    if method == "Create" and response is not None:
        assert HEX_TAIL.search(response["id"]), f"wanted an id that ends in 8 hex digits, found {response['id']}"
        response["id"] = HEX_TAIL.sub("<8 hex digits>", response["id"])
    if error and ":\n" in error:
        # stdout and stderr are two streams, whose lines meet in no fixed order.
        head, said = error.split(":\n", 1)
        error = head + ":\n" + "".join(sorted(said.splitlines(keepends=True)))
    return Answer(response, error)


def recorded(name: str) -> list[Json]:
    lines = (RECORDINGS / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded exchanges are not in {RECORDINGS}")
@pytest.mark.parametrize("name", NAMES)
def test_answers_as_recorded(name: str, plugin_binary: Path, program: Path, host: SshHost) -> None:
    (program / "__main__.py").write_text("import pulumi\n")  # what copy.jsonl copies
    with refusing_port() as port, Plugin(plugin_binary, program) as plugin:
        machine = Machine(host, port)
        for number, exchange in enumerate(recorded(name), start=1):
            method = exchange["method"].rpartition("/")[2]
            wanted = Answer(
                machine.translate(exchange.get("response")),
                machine.translate(exchange.get("errors", [None])[0]),
            )
            found = plugin.call(method, machine.translate(exchange["request"]))
            assert normal(method, found) == normal(method, wanted), f"line {number}: {method}"
    if name == "copy":
        assert (host.root / "project" / "copied.txt").read_text() == "import pulumi\n"


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded exchanges are not in {RECORDINGS}")
def test_every_recording_is_replayed() -> None:
    assert sorted(path.stem for path in RECORDINGS.glob("*.jsonl")) == sorted(NAMES)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the recorded exchanges are not in {RECORDINGS}")
def test_a_changed_response_would_be_noticed() -> None:
    check = next(line for line in recorded("badauth") if line["method"].endswith("/Check"))
    password = check["response"]["inputs"]["connection"]["value"]["password"]
    assert SECRET_SIGNATURE in password, "the recording marks the password as secret"
    changed = copy.deepcopy(check["response"])
    changed["inputs"]["connection"]["value"]["password"] = password["value"]
    assert normal("Check", Answer(changed, None)) != normal("Check", Answer(check["response"], None))
