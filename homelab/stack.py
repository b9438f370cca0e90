"""The running program's settings, with the refusals that need no host."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import threading
import time

import grpc
import pulumi
from pulumi.runtime import resource
from pulumi.runtime import settings as running
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, source_pb2

from homelab.errors import HomelabError, raise_all
from homelab.events import WILL_REFUSE
from homelab.settings import Settings, parse, stack_file
from homelab.settings import secrets as secret_settings

# By this exit status a program tells the language host that it has shown why it ends (pulumi-language-python, main.go).
# With any other, "an unhandled error occurred" follows the message.
SHOWN = 32
# How often the engine is asked whether it is there, in seconds.
ENGINE_SECONDS = 5.0


class Refusal(pulumi.RunError):
    """Ends the program with `error` as all that Pulumi's display shows; after a pulumi.RunError alone, the status is
    1."""

    def __init__(self, error: HomelabError) -> None:
        super().__init__(str(error))
        # Only where an engine runs this program: a test's process has an exit status of its own.
        if isinstance(running.SETTINGS.engine, engine_pb2_grpc.EngineStub):
            atexit.register(os._exit, SHOWN)

    @classmethod
    def of(cls, *, wanted: str, found: str, why: str, next: str) -> Refusal:
        """With an error of these parts."""
        return cls(HomelabError(wanted=wanted, found=found, why=why, next=next))


def load() -> Settings:
    """The settings of the running program.

    :raises HomelabError: one error that names every mistake.
    """
    _end_on_interrupt()
    # Of each of its own steps the SDK tells the engine, and waits for that. Nobody sees them without --debug.
    pulumi.log.debug = lambda *_, **__: None
    # Where in the program each resource is made was a quarter of the state, which the engine writes at each step.
    resource._get_stack_trace = source_pb2.StackTrace
    if isinstance(running.SETTINGS.engine, engine_pb2_grpc.EngineStub):
        threading.Thread(target=_end_with, args=(running.SETTINGS.engine,), daemon=True).start()
    # What is imported stays to the end: to look through it for garbage, the last time when the program ends, took a
    # quarter of its processor time. While it was imported, nothing was looked through (__main__.py).
    gc.freeze()
    gc.enable()
    # As the language host passes it; pulumi.Config can't list keys, so that an unknown one would go unnoticed.
    configuration = json.loads(os.environ.get("PULUMI_CONFIG", "{}"))
    errors, file = _unread(configuration), stack_file.path_of(pulumi.get_stack())
    values = {key.removeprefix("homelab:"): text for key, text in configuration.items() if key.startswith("homelab:")}
    try:
        settings = parse(values, file if secret_settings.file_of_configuration(configuration, file) else None)
    except HomelabError as error:
        raise_all([*errors, error])
        raise
    errors += _unsafe(settings)
    raise_all(errors)
    return settings


def after(*resources: pulumi.Resource | None) -> pulumi.ResourceOptions:
    """Options of a resource that is made after these, and deleted before them.

    :param resources: None: there is none.
    """
    return pulumi.ResourceOptions(depends_on=[resource for resource in resources if resource is not None])


def _end_on_interrupt() -> None:
    """Ends the program at once on SIGINT. When an update fails, the engine interrupts the program, which otherwise
    would wait for its threads until it is killed five seconds later."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(SHOWN))


def _end_with(engine: engine_pb2_grpc.EngineStub) -> None:
    """Ends the program once the engine is gone. One that was killed ends nothing that it has started, and the SDK would
    wait for its answers for ever, and the language host for the program."""
    silent = 0
    while silent < 2:
        time.sleep(ENGINE_SECONDS)
        try:
            engine.GetRootResource(engine_pb2.GetRootResourceRequest())
            silent = 0
        except grpc.RpcError as error:
            silent += error.code() is grpc.StatusCode.UNAVAILABLE
    os._exit(SHOWN)


def _unread(configuration: dict[str, str]) -> list[HomelabError]:
    """The refusal of keys that nothing reads, in the configuration or in the stack's file beside it."""
    # The stack's own file, which with `--config-file` isn't the one that Pulumi reads.
    lines, file = stack_file.misspelt(configuration), stack_file.path_of(pulumi.get_stack())
    if isinstance(content := secret_settings.file_of_configuration(configuration, file), dict):
        lines = stack_file.unread(content) + lines
    return [stack_file.not_read(lines, file.name)] if lines else []


def _unsafe(settings: Settings) -> list[HomelabError]:
    """Refusals of secrets in plain text, and of the example's placeholders; of placeholders a preview only warns."""

    stack, errors = pulumi.get_stack(), []
    if not settings.allow_plain_secrets:
        file = stack_file.path_of(stack)
        plain, uncertain = secret_settings.in_plain_text(settings, os.environ, file)
        if plain:
            errors.append(secret_settings.plain_secrets(plain, stack))
        if uncertain:
            pulumi.log.warn(
                f"whether all of {', '.join(map(secret_settings.path_of, uncertain))} are encrypted isn't known: some "
                f"are, and {file} isn't the file that was read"
            )
    if places := secret_settings.left_open(settings):
        error = secret_settings.still_open(places, stack)
        if pulumi.runtime.is_dry_run():
            pulumi.log.warn(f"{WILL_REFUSE}\n{error}")
        else:
            errors.append(error)
    return errors
