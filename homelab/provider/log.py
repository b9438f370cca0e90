"""Messages to the person who watches. The engine hides what a provider prints, and shows what it is told by this call.
Passing messages go to the resource's own line. Lasting ones go to the stack's, which keeps their order: at the end
Pulumi lists messages by resource, and the resources in no order."""

from __future__ import annotations

import contextlib
import contextvars

import grpc
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

#: The resource whose messages are told in this context.
URN: contextvars.ContextVar[str] = contextvars.ContextVar("urn", default="")


class Engine:
    """The engine that started the provider. `address`: where it listens."""

    def __init__(self, address: str) -> None:
        # gRPC would take the environment's proxy for 127.0.0.1, too.
        options = [("grpc.enable_http_proxy", 0)]
        self._stub = engine_pb2_grpc.EngineStub(grpc.insecure_channel(address, options))

    def tell(self, text: str, *, meanwhile: bool) -> None:
        """Shows it; from any thread.

        :param meanwhile: in the line of the resource that is worked on, and not among the messages at the end.
        """
        urn = URN.get() if meanwhile else ""
        request = engine_pb2.LogRequest(
            severity=engine_pb2.LogSeverity.Value("INFO"), message=text, urn=urn, streamId=0, ephemeral=meanwhile
        )
        # The engine may be gone, and with it whoever would read.
        with contextlib.suppress(grpc.RpcError):
            self._stub.Log(request, timeout=5)
