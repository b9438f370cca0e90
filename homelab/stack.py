"""The running program's settings, refused where it is plain from them alone that they can't be carried out."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pulumi
from pulumi.runtime import settings as running
from pulumi.runtime.proto import engine_pb2_grpc

from homelab.errors import HomelabError, raise_all
from homelab.later import later
from homelab.nvidia import lock
from homelab.nvidia.lock import SystemLock
from homelab.settings import Settings, parse, stack_file
from homelab.settings import secrets as secret_settings

if TYPE_CHECKING:
    from homelab.nvidia import preview
    from homelab.remote.proxmox import places
else:
    preview, places = later("homelab.nvidia.preview"), later("homelab.remote.proxmox.places")


# By this exit status a program tells the language host that it has shown why it ends (pulumi-language-python, main.go).
# With any other, "an unhandled error occurred" follows the message.
SHOWN = 32


class Refusal(pulumi.RunError):
    """Ends the program with `error` as all that Pulumi's display shows; after a pulumi.RunError alone, the status is
    1."""

    def __init__(self, error: HomelabError) -> None:
        super().__init__(str(error))
        # Only where an engine runs this program: a test's process has an exit status of its own.
        if isinstance(running.SETTINGS.engine, engine_pb2_grpc.EngineStub):
            atexit.register(os._exit, SHOWN)


def load() -> Settings:
    """The settings of the running program, refused where it is plain from them alone that they can't be carried out.

    :raises HomelabError: one error that names every mistake.
    """
    _end_when_told()
    # What the language host hands to a program; pulumi.Config can't list keys, so an unknown one would go unnoticed.
    whole = json.loads(os.environ.get("PULUMI_CONFIG", "{}"))
    errors = _unread(whole)
    try:
        found = parse({key.removeprefix("homelab:"): text for key, text in whole.items() if key.startswith("homelab:")})
    except HomelabError as error:
        raise_all([*errors, error])
        raise
    errors += _unsafe(found)
    if found.roaming:
        raise_all(errors)
        found = places.located(found)
    if found.stacks:
        errors += preview.from_settings(found)
    raise_all(errors)
    return found


@functools.cache
def locks() -> dict[str, SystemLock]:
    """What the running program's lock file has, by system; refused with the program's own end where it can't be
    read."""
    try:
        return lock.load(lock.path_of(Path.cwd(), pulumi.get_stack()))
    except HomelabError as error:
        raise Refusal(error) from None


def _end_when_told() -> None:
    """When an update fails, the engine interrupts the program, which would wait for its own threads, and is killed five
    seconds later."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(SHOWN))


def _file() -> Path:
    """The stack's own file; with `--config-file`, another one was read."""
    return Path.cwd() / f"Pulumi.{pulumi.get_stack().rpartition('/')[2]}.yaml"


def _unread(whole: dict[str, str]) -> list[HomelabError]:
    """What stands where nobody reads it: in the configuration, or in the stack's file beside it."""
    lines = stack_file.misspelt(whole)
    if isinstance(read := secret_settings.file_of_configuration(whole, _file()), dict):
        lines = stack_file.unread(read) + lines
    return [stack_file.not_read(lines, _file().name)] if lines else []


def _unsafe(found: Settings) -> list[HomelabError]:
    """What stands against secrets in plain text and values of the example; in a preview, the latter are only named."""

    stack, errors = pulumi.get_stack(), []
    if not found.allow_plain_secrets:
        file = _file()
        plain_ones, unknown = secret_settings.in_plain_text(found.as_written(), os.environ, file)
        if plain_ones:
            errors.append(secret_settings.plain_secrets(plain_ones, stack))
        if unknown:
            pulumi.log.warn(
                f"whether all of {', '.join(map(secret_settings.path_of, unknown))} are encrypted can't be told: "
                f"some are, and {file} "
                "isn't the file that was read"
            )
    if places := secret_settings.left_open(found.as_written()):
        error = secret_settings.still_open(places, stack)
        if pulumi.runtime.is_dry_run():
            pulumi.log.warn(f"`pulumi up` will refuse this:\n{error}")
        else:
            errors.append(error)
    return errors
