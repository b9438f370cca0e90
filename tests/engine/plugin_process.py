"""A plugin of the Pulumi engine as a process, driven as the engine does: gRPC on the port that it prints."""

from __future__ import annotations

import dataclasses
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf import empty_pb2, json_format  # type: ignore[import-untyped]
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, provider_pb2, provider_pb2_grpc

from tests.waiting import PATIENCE

"""Generous: only a broken test waits that long."""

SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key that marks a property value as special, on Pulumi's wire."""
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""A string that isn't known yet, on Pulumi's wire."""

REQUESTS: dict[str, Any] = {
    "Handshake": provider_pb2.ProviderHandshakeRequest,
    "GetPluginInfo": empty_pb2.Empty,
    "GetSchema": provider_pb2.GetSchemaRequest,
    "CheckConfig": provider_pb2.CheckRequest,
    "DiffConfig": provider_pb2.DiffRequest,
    "Configure": provider_pb2.ConfigureRequest,
    "Check": provider_pb2.CheckRequest,
    "Diff": provider_pb2.DiffRequest,
    "Create": provider_pb2.CreateRequest,
    "Update": provider_pb2.UpdateRequest,
    "Delete": provider_pb2.DeleteRequest,
    "Cancel": empty_pb2.Empty,
}

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LogLine:
    """What a plugin sent to the engine's log."""

    severity: str
    message: str
    ephemeral: bool


class EngineLog(engine_pb2_grpc.EngineServicer):
    """The part of the engine that a plugin talks back to."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[LogLine] = []

    def Log(self, request: engine_pb2.LogRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        severity = engine_pb2.LogSeverity.Name(request.severity).lower()
        with self._changed:
            self._lines.append(LogLine(severity, request.message, request.ephemeral))
            self._changed.notify_all()
        return empty_pb2.Empty()

    def lines(self) -> list[LogLine]:
        with self._changed:
            return list(self._lines)

    def wait_for(self, message: str) -> None:
        """Returns once a message was logged.

        Raises:
            AssertionError: it wasn't.
        """

        def there() -> bool:
            return any(line.message == message for line in self._lines)

        with self._changed:
            assert self._changed.wait_for(there, PATIENCE), f"wanted {message!r} in {self._lines}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response as JSON, or an error in the words in which the engine's log has it."""

    response: Json | None
    error: str | None

    @property
    def failure(self) -> str:
        """The error's text.

        Raises:
            AssertionError: it is a response.
        """
        assert self.error is not None, self.response
        return self.error

    @property
    def properties(self) -> Json:
        """The resource's properties in a response.

        Raises:
            AssertionError: it is an error.
        """
        assert self.response is not None, self.error
        return cast(Json, self.response["properties"])


class Plugin:
    """A running plugin; a context manager. ``cwd`` is the program's folder, as under the engine; ``port``: where it listens."""

    def __init__(self, binary: Path, cwd: Path) -> None:
        self.binary = binary
        self.cwd = cwd
        self.log = EngineLog()

    def __enter__(self) -> Plugin:
        self._engine = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        engine_pb2_grpc.add_EngineServicer_to_server(self.log, self._engine)
        address = f"127.0.0.1:{self._engine.add_insecure_port('127.0.0.1:0')}"
        self._engine.start()
        self._process = subprocess.Popen(
            [str(self.binary), address],
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        port = self._process.stdout.readline().strip()
        assert port.isdigit(), f"wanted the port on the plugin's first line, found {port!r}"
        self.port = int(port)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stdout
        self._process.stdout.close()
        self._engine.stop(None)

    def disconnect(self) -> None:
        """Drops the connection to the plugin, as an engine does that is killed."""
        self._channel.close()

    def call(self, method: str, request: Json) -> Answer:
        """One exchange, in the JSON form of the messages."""
        message = json_format.ParseDict(request, REQUESTS[method]())
        rpc = cast(Callable[..., Any], getattr(self._stub, method))
        try:
            return Answer(json_format.MessageToDict(rpc(message, timeout=PATIENCE)), None)
        except grpc.RpcError as failure:
            code = failure.code().name.title().replace("_", "")
            return Answer(None, f"rpc error: code = {code} desc = {failure.details()}")

    def configure(self) -> None:
        """Brings the plugin to where it serves resources."""
        arguments = {"acceptResources": True, "acceptSecrets": True, "sendsOldInputs": True}
        assert self.call("Configure", {**arguments, "args": {}, "variables": {}}).error is None

    def create(self, token: str, properties: Json, *, preview: bool = False) -> Answer:
        return self.call("Create", {**resource(token), "properties": properties, "preview": preview})

    def update(self, token: str, old: Json, news: Json, *, preview: bool = False) -> Answer:
        """``old`` are the properties that a create or update returned."""
        identity = {**resource(token), "id": "test01234567"}
        return self.call("Update", {**identity, "olds": old, "news": news, "preview": preview})

    def delete(self, token: str, old: Json) -> Answer:
        return self.call("Delete", {**resource(token), "id": "test01234567", "properties": old})


def resource(token: str) -> Json:
    """What names a resource in a request."""
    return {"name": "test", "type": token, "urn": f"urn:pulumi:dev::proj::{token}::test"}
