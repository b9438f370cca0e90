"""Answers the engine: between its calls and the work on resources.

The provider also ends by itself: when the engine is killed, the provider ends with it, and with that every connection
to a host.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import re
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from homelab import __version__, earlier, text
from homelab.errors import HomelabError, UnfinishedError
from homelab.guest.resource import Guest
from homelab.host.resource import HostProbe
from homelab.provider import log
from homelab.provider.difference import differences, fill_defaults, top
from homelab.provider.registry import work_of
from homelab.resources.base import Resource, declared
from homelab.resources.work.plain import UNKNOWN, Properties, plain, valued

T = TypeVar("T")
# As the engine reads a version, which isn't as Python does.
VERSION = __version__.replace(".dev", "-dev")
# How the engine is told why a resource isn't finished: it puts words of its own before it.
UNFINISHED = "not finished; what is known of it is kept in the state:"
# Resources mostly wait for a host; asyncio's own pool has as many threads as there are processors, and four.
THREADS = 64


class Homelab:
    """The provider: each call by the resource's declaration (homelab/resources) and its work (registry.py). Methods are
    the protocol's, by their names in Python."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        # Hosts whose plan a preview hasn't shown -> the URN of their probe, and its `guests` now and before.
        self._not_shown: dict[str, list[str]] = {}
        self._plans: dict[str, Properties] = {}
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="work")

    async def get_plugin_info(self, _: Empty) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=VERSION)

    async def check_config(self, request: provider_pb2.CheckRequest) -> provider_pb2.CheckResponse:
        # All of it stays: a refresh or a destroy that runs without the program gets it from here.
        request.news.update(earlier.STATES)
        return provider_pb2.CheckResponse(inputs=request.news)

    async def diff_config(self, request: provider_pb2.DiffRequest) -> provider_pb2.DiffResponse:
        _need_states(request.olds)
        # How a host is reached may change; that is no reason to replace anything.
        return provider_pb2.DiffResponse(hasDetailedDiff=True)

    async def configure(self, request: provider_pb2.ConfigureRequest) -> provider_pb2.ConfigureResponse:
        _need_states(request.args)
        self._texts = {key: str(value) for key, value in plain(request.args).items() if value is not None}
        # Secrets stay secret all the same: the engine marks what comes back under the key of a secret input.
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    async def check(self, request: provider_pb2.CheckRequest) -> provider_pb2.CheckResponse:
        if _type_of(request.urn) != HostProbe.token():
            return provider_pb2.CheckResponse(inputs=request.news)
        inputs = plain(request.news)
        guests = (side.get("guests", "") for side in (inputs, plain(request.olds)))
        self._not_shown[str(inputs["host"])] = [request.urn, *guests]
        # That this is a preview, the engine says of a change alone.
        if inputs.pop("preview", False) and self._texts.get("plan") == "always":
            await self._show_plan(inputs.get("host"))
        return provider_pb2.CheckResponse(inputs=valued(inputs))

    async def invoke(self, request: provider_pb2.InvokeRequest) -> provider_pb2.InvokeResponse:
        """Holds a host before a step of pulumi-command's (homelab/resources/command.py)."""
        asked = plain(request.args)
        inputs = HostProbe.Inputs(host=str(asked["host"]), settings="")
        await self._in_thread(HostProbe, "", lambda work: work.hold_for_a_step(inputs, asked.get("owner")))
        return provider_pb2.InvokeResponse()

    async def diff(self, request: provider_pb2.DiffRequest) -> provider_pb2.DiffResponse:
        resource, state = _declared(request.urn), plain(request.olds)
        before, inputs = (fill_defaults(resource.Inputs, side) for side in (state, plain(request.news)))
        kinds = {
            path: kind
            for path, kind in differences(before, inputs).items()
            if top(path) not in resource.ignored and not resource.says_nothing(top(path), inputs.get(top(path)))
        }
        replacing = resource.replacing(state, {key: inputs.get(key) for key in map(top, kinds)})
        if not kinds:
            kinds = {key: "update" for key in resource.asks_for_update if state.get(key)}
        named = {path: f"{kind}{'_replace' * (top(path) in replacing)}".upper() for path, kind in kinds.items()}
        changed = "DIFF_SOME" if named else "DIFF_NONE"
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DiffChanges.Value(changed),
            replaces=sorted(replacing),
            detailedDiff={
                path: provider_pb2.PropertyDiff(kind=provider_pb2.PropertyDiff.Kind.Value(kind))
                for path, kind in named.items()
            },
            hasDetailedDiff=True,
            diffs=sorted({top(path) for path in named}),
            deleteBeforeReplace=bool(replacing) and resource.delete_before_replace,
        )

    async def create(self, request: provider_pb2.CreateRequest) -> provider_pb2.CreateResponse:
        resource, inputs = _declared(request.urn), plain(request.properties)
        if request.preview:
            await self._show_plan(inputs.get("host"))
            return provider_pb2.CreateResponse(properties=valued(_previewed(resource, inputs)))
        id_, state = await self._in_thread(resource, request.urn, lambda work: work.created(inputs))
        return provider_pb2.CreateResponse(id=id_, properties=valued(state))

    async def read(self, request: provider_pb2.ReadRequest) -> provider_pb2.ReadResponse:
        state = plain(request.properties)
        if not state:
            raise HomelabError(
                wanted=f"{request.id} imported as {_type_of(request.urn)}",
                found="this program's resources are made by `pulumi up` alone",
                why="`pulumi up` takes over what is on a host, and notes what was there before; an import would "
                "note nothing",
                next="describe it in the stack's configuration and run `pulumi up` (docs/settings.md)",
            )
        refreshed = await self._in_thread(_declared(request.urn), request.urn, lambda work: work.refreshed(state))
        if refreshed is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=request.id, properties=valued(refreshed), inputs=request.inputs)

    async def update(self, request: provider_pb2.UpdateRequest) -> provider_pb2.UpdateResponse:
        resource, state, inputs = _declared(request.urn), plain(request.olds), plain(request.news)
        if request.preview:
            plan = await self._show_plan(inputs.get("host"))
            if resource is Guest and not any(value is UNKNOWN for value in inputs.values()):
                await self._in_thread(resource, request.urn, lambda work: work.foretell(state, inputs))
            previewed = _previewed(resource, inputs)
            if resource is HostProbe:
                if not state["stale"] and state["settings"] == inputs["settings"]:
                    previewed = {**state, **inputs}  # as it was, unless the host was read
                # So only what the new plan changes looks changed.
                previewed |= {**plan, "generation": state["generation"]}
            return provider_pb2.UpdateResponse(properties=valued(previewed))
        updated = await self._in_thread(resource, request.urn, lambda work: work.updated(state, inputs))
        return provider_pb2.UpdateResponse(properties=valued(updated))

    async def delete(self, request: provider_pb2.DeleteRequest) -> Empty:
        state = plain(request.properties)
        await self._in_thread(_declared(request.urn), request.urn, lambda work: work.deleted(state))
        return Empty()

    async def cancel(self, _: Empty) -> Empty:
        """Ctrl-C: the engine begins nothing more, and waits for what is at work."""
        # The engine also says it at the end of each run, gives all its plugins five seconds together, and reports an
        # error of those that don't answer by then. A run that holds no host doesn't have this module, and on a slow
        # machine its import takes longer than that.
        if "homelab.remote.host_session" in sys.modules:
            from homelab.remote import host_session  # noqa: PLC0415

            host_session.cancel()
        return Empty()

    async def _show_plan(self, host: object) -> Properties:
        """Shows a host's plan in a preview, once, and refuses what an `up` would; nothing of a host without a probe in
        this program. The probe comes before all else of its host.

        :returns: as of `HostProbeWork.show_plan`.
        """
        if probe := self._not_shown.pop(str(host), None):
            urn, *guests = probe
            self._plans[str(host)] = await self._in_thread(HostProbe, urn, lambda work: work.show_plan(host, *guests))
        return self._plans.get(str(host), {})

    async def _in_thread(self, resource: type[Resource], urn: str, do: Callable[[Any], T]) -> T:
        """In a thread: what blocks the loop would hold up all other calls.

        :param do: called with the resource's `Work`.
        """

        def work() -> T:
            log.URN.set(urn)
            return do(work_of(resource)(self._texts, urn))

        in_context = contextvars.copy_context().run
        outcome: T = await asyncio.get_running_loop().run_in_executor(self._threads, in_context, work)
        return outcome


def _type_of(urn: str) -> str:
    # A resource's type; its URN has those of its parents before it: `a$b`.
    return urn.split("::")[2].rpartition("$")[2]


def _declared(urn: str) -> type[Resource]:
    """A resource's declaration.

    :raises HomelabError: there is none: the state is another version's.
    """
    name, resources = _type_of(urn), declared()
    if name not in resources:
        raise HomelabError(
            wanted=f"the work on a resource of the type {name}",
            found="this version of the program has no such type",
            why="another version wrote the state, and only that version can undo what it set up",
            next="run `pulumi destroy` with the version that wrote it, then `pulumi up` with this one",
        )
    return resources[name]


def _need_states(inputs: Any) -> None:
    """Refuses a state of an earlier version.

    :param inputs: the provider's own, as the state has them.
    :raises HomelabError: it is one.
    """
    if not plain(inputs).items() >= earlier.STATES.items():
        raise earlier.refusal("this stack's state is of homelab 1.0.0, or of a commit after it")


def _previewed(resource: type[Resource], inputs: Properties) -> Properties:
    # A resource as a preview knows it: nothing of what it will put out.
    return {**dict.fromkeys(resource.output_names(), UNKNOWN), **inputs}


def answered(call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """A method of the provider as gRPC calls it, which says errors as they are."""

    @functools.wraps(call)
    async def method(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await call(request)
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
    inputs = request.news if isinstance(request, provider_pb2.UpdateRequest) else request.properties
    details = provider_pb2.ErrorResourceInitFailed(
        id=error.id, properties=valued(error.state), reasons=[f"{UNFINISHED}\n{error}"], inputs=inputs
    )
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=str(error))
    status.details.add().Pack(details)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def servicer() -> provider_pb2_grpc.ResourceProviderServicer:
    """The provider as gRPC has it; a call that it doesn't have isn't implemented."""
    provider, methods = Homelab(), provider_pb2_grpc.ResourceProviderServicer()
    for name in provider_pb2.DESCRIPTOR.services_by_name["ResourceProvider"].methods_by_name:
        if call := getattr(provider, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), None):
            setattr(methods, name, answered(call))
    return methods


async def _serve() -> None:
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer(), server)
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
    asyncio.run(_serve())
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for a host don't hold up the end
