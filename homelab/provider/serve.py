"""Answers the engine: between its calls and the work on resources.

The SDK's provider interface (pulumi.provider.experimental) is used with a servicer that says errors as they are. The
provider also ends by itself: when the engine is killed, the provider ends with it, and with that every connection to a
host.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import json
import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2

from homelab import __version__, earlier, text
from homelab.errors import HomelabError, UnfinishedError
from homelab.provider import log
from homelab.provider.difference import differences, top
from homelab.provider.plain import UNKNOWN, Properties, plain_map, valued_map
from homelab.provider.registry import work_of
from homelab.resources.base import DECLARED, Resource
from homelab.resources.host_probe import HostProbe

T = TypeVar("T")
_KINDS = {
    "add": (sdk.PropertyDiffKind.ADD, sdk.PropertyDiffKind.ADD_REPLACE),
    "delete": (sdk.PropertyDiffKind.DELETE, sdk.PropertyDiffKind.DELETE_REPLACE),
    "update": (sdk.PropertyDiffKind.UPDATE, sdk.PropertyDiffKind.UPDATE_REPLACE),
}
# As the engine reads a version, which isn't as Python does.
VERSION = __version__.replace(".dev", "-dev")
# How the engine is told why a resource isn't finished: it puts words of its own before it.
UNFINISHED = "not finished; what is known of it is kept in the state:"
# Resources mostly wait for a host; asyncio's own pool has as many threads as there are processors, and four.
THREADS = 64


class Homelab(sdk.Provider):
    """The provider: each call by the resource's declaration (homelab/resources) and its work (registry.py)."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        # Hosts whose plan a preview hasn't shown -> the URN of their probe.
        self._not_shown: dict[str, str] = {}
        self._plans: dict[str, Properties] = {}
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="work")

    async def get_schema(self, request: sdk.GetSchemaRequest) -> sdk.GetSchemaResponse:
        resources: Properties = {resource.token(): {} for resource in DECLARED.values()}
        return sdk.GetSchemaResponse(json.dumps({"name": "homelab", "version": VERSION, "resources": resources}))

    async def check_config(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        # All of it stays: a refresh or a destroy that runs without the program gets it from here.
        return sdk.CheckResponse(inputs={**request.new_inputs, **valued_map(earlier.STATES)})

    async def diff_config(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        _need_states(request.old_state)
        # How a host is reached may change; that is no reason to replace anything.
        return sdk.DiffResponse()

    async def configure(self, request: sdk.ConfigureRequest) -> sdk.ConfigureResponse:
        _need_states(request.args)
        self._texts = {key: str(value) for key, value in plain_map(request.args).items() if value is not None}
        # Secrets stay secret all the same: the engine marks what comes back under the key of a secret input.
        return sdk.ConfigureResponse(
            accept_secrets=False, supports_preview=True, accept_outputs=False, accept_resources=False
        )

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        if request.type != HostProbe.token():
            return sdk.CheckResponse(request.new_inputs)
        inputs = plain_map(request.new_inputs)
        self._not_shown[str(inputs["host"])] = request.urn
        # That this is a preview, the engine says of a change alone.
        if inputs.pop("preview", False) and self._texts.get("plan") == "always":
            await self._show_plan(inputs.get("host"))
        return sdk.CheckResponse(valued_map(inputs))

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        resource = _declared(request.type)
        state, inputs = plain_map(request.old_state), plain_map(request.new_inputs)
        # The state has the outputs, too.
        declared = {field.name for field in dataclasses.fields(resource.Inputs)}
        before = {key: value for key, value in state.items() if key in declared}
        kinds = {
            path: kind
            for path, kind in differences(before, inputs).items()
            if top(path) not in resource.ignored and not resource.says_nothing(top(path), inputs.get(top(path)))
        }
        replacing = resource.replacing(state, {key: inputs.get(key) for key in map(top, kinds)})
        detailed = {
            path: sdk.PropertyDiff(_KINDS[kind][top(path) in replacing], input_diff=False)
            for path, kind in kinds.items()
        }
        if not detailed:
            update = sdk.PropertyDiff(sdk.PropertyDiffKind.UPDATE, input_diff=False)
            detailed = {key: update for key in resource.asks_for_update if state.get(key)}
        return sdk.DiffResponse(
            changes=bool(detailed),
            replaces=sorted(replacing),
            detailed_diff=detailed,
            diffs=sorted({top(path) for path in detailed}),
            delete_before_replace=bool(replacing) and resource.delete_before_replace,
        )

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        resource, inputs = _declared(request.type), plain_map(request.properties)
        if request.preview:
            await self._show_plan(inputs.get("host"))
            return sdk.CreateResponse("", valued_map(_previewed(resource, inputs)))
        id_, state = await self._in_thread(resource, request.urn, lambda work: work.created(inputs))
        return sdk.CreateResponse(id_, valued_map(state))

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        state = plain_map(request.properties)
        if not state:
            raise HomelabError(
                wanted=f"{request.resource_id} imported as {request.type}",
                found="this program's resources are made by `pulumi up` alone",
                why="`pulumi up` takes over what is on a host, and notes what was there before; an import would "
                "note nothing",
                next="describe it in the stack's configuration and run `pulumi up` (docs/settings.md)",
            )
        refreshed = await self._in_thread(_declared(request.type), request.urn, lambda work: work.refreshed(state))
        if refreshed is None:
            return sdk.ReadResponse(resource_id="")
        return sdk.ReadResponse(request.resource_id, valued_map(refreshed), request.inputs)

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        resource, state, inputs = _declared(request.type), plain_map(request.olds), plain_map(request.news)
        if request.preview:
            plan = await self._show_plan(inputs.get("host"))
            previewed = _previewed(resource, inputs)
            if resource is HostProbe and plan:  # so only what the new plan changes looks changed
                previewed |= {**plan, "generation": state["generation"]}
            return sdk.UpdateResponse(valued_map(previewed))
        updated = await self._in_thread(resource, request.urn, lambda work: work.updated(state, inputs))
        return sdk.UpdateResponse(valued_map(updated))

    async def delete(self, request: sdk.DeleteRequest) -> None:
        state = plain_map(request.properties)
        await self._in_thread(_declared(request.type), request.urn, lambda work: work.deleted(state))

    async def cancel(self) -> None:
        """Ctrl-C: the engine begins nothing more, and waits for what is at work."""
        # The engine also says it at the end of each run, gives all its plugins five seconds together, and reports an
        # error of those that don't answer by then. A run that holds no host doesn't have this module, and on a slow
        # machine its import takes longer than that.
        if "homelab.remote.guard" in sys.modules:
            from homelab.remote import guard  # noqa: PLC0415

            guard.cancel()

    async def _show_plan(self, host: object) -> Properties:
        """Shows a host's plan in a preview, once, and refuses what an `up` would; nothing of a host without a probe in
        this program. The probe comes before all else of its host.

        :returns: as of `HostProbeWork.show_plan`.
        """
        if urn := self._not_shown.pop(str(host), ""):
            self._plans[str(host)] = await self._in_thread(HostProbe, urn, lambda work: work.show_plan(host))
        return self._plans.get(str(host), {})

    async def _in_thread(self, resource: type[Resource], urn: str, do: Callable[[Any], T]) -> T:
        """In a thread: what blocks the loop would hold up all other calls.

        :param do: called with the resource's `Work`.
        """

        def work() -> T:
            return do(work_of(resource)(self._texts, urn))

        with log.messages_of(urn):
            context = contextvars.copy_context()
        outcome: T = await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)
        return outcome


def _declared(kind: str) -> type[Resource]:
    """A resource's declaration.

    :param kind: the type, or, as some requests have it, those of the parents and then the type: `a$b`.
    :raises HomelabError: there is none: the state is another version's.
    """
    name = kind.rpartition("$")[2]
    if name not in DECLARED:
        raise HomelabError(
            wanted=f"the work on a resource of the type {name}",
            found="this version of the program has no such type",
            why="another version wrote the state, and only that version can undo what it set up",
            next="run `pulumi destroy` with the version that wrote it, then `pulumi up` with this one",
        )
    return DECLARED[name]


def _need_states(inputs: Mapping[str, PropertyValue]) -> None:
    """Refuses a state of an earlier version.

    :param inputs: the provider's own, as the state has them.
    :raises HomelabError: it is one.
    """
    own = plain_map(inputs)
    if not own.keys() >= earlier.STATES.keys():
        raise earlier.refusal("this stack's state is of homelab 1.0.0")
    if not own.items() >= earlier.STATES.items():
        raise earlier.refusal(f"this stack's state is of {earlier.LATER[0]}", *earlier.LATER)


def _previewed(resource: type[Resource], inputs: Properties) -> Properties:
    """A resource as a preview knows it: nothing of what it will put out."""
    return {**dict.fromkeys(resource.output_names(), UNKNOWN), **inputs}


class Servicer(ProviderServicer):
    """The SDK's, but for errors: it shows one that isn't caught as `Unexpected <class '…'>: …`."""


def _with_plain_errors(name: str) -> Callable[..., Awaitable[Any]]:
    inherited = getattr(ProviderServicer, name)

    @functools.wraps(inherited)
    async def method(self: Servicer, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inherited(self, request, context)
        except UnfinishedError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error), with_its_state(error, request))
        except HomelabError as error:
            # Not UNKNOWN or INTERNAL, after which the engine doesn't know what has become of the resource.
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:  # a mistake in this program: with the place where it is
            await context.abort(grpc.StatusCode.UNKNOWN, text.clean("".join(traceback.format_exception(error))))

    return method


def with_its_state(error: UnfinishedError, request: Any) -> tuple[tuple[str, bytes], ...]:
    """What tells the engine to keep a resource of which the work has failed."""
    state = PropertyValue.marshal_map(valued_map(error.state))
    inputs = request.news if isinstance(request, provider_pb2.UpdateRequest) else request.properties
    details = provider_pb2.ErrorResourceInitFailed(
        id=error.id, properties=state, reasons=[f"{UNFINISHED}\n{error}"], inputs=inputs
    )
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=str(error))
    status.details.add().Pack(details)
    return (("grpc-status-details-bin", status.SerializeToString()),)


for _name in ("CheckConfig", "DiffConfig", "Configure", "Check", "Diff", "Create", "Read", "Update", "Delete"):
    setattr(Servicer, _name, _with_plain_errors(_name))


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    servicer = Servicer([], VERSION, Homelab(), engine_address=address)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    _end_with_the_engine(loop, stop)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(grace=None)


def _end_with_the_engine(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The engine holds the other end of standard input: when it is killed, that ends."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1024):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, daemon=True, name="the engine's life").start()


def main() -> None:
    """Serves until the engine says that it is enough, or ends.

    The engine's address is the first argument that is no option.
    """
    address = next(argument for argument in sys.argv[1:] if not argument.startswith("-"))
    text.shown_by(log.Engine(address).tell)
    asyncio.run(_serve(address))
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for a host don't hold up the end
