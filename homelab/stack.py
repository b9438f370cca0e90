"""The running program's settings, refused where it is plain from them alone that they can't be carried out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pulumi

from homelab.errors import HomelabError, raise_all
from homelab.settings import Settings, parse
from homelab.settings import secrets as secret_settings


def load() -> Settings:
    """The settings of the running program, refused where it is plain from them alone that they can't be carried out.

    :raises HomelabError: one error that names every mistake.
    """
    # What the language host hands to a program; pulumi.Config can't list keys, so an unknown one would go unnoticed.
    whole = json.loads(os.environ.get("PULUMI_CONFIG", "{}"))
    found = parse({key.removeprefix("homelab:"): text for key, text in whole.items() if key.startswith("homelab:")})
    errors = _unsafe(found)
    if found.stacks:
        from homelab.nvidia import preview  # only here: its data is read

        errors += preview.from_settings(found)
    raise_all(errors)
    return found


def _unsafe(found: Settings) -> list[HomelabError]:
    """What stands against secrets in plain text and values of the example; in a preview, the latter are only named."""

    stack, errors = pulumi.get_stack(), []
    if not found.allow_plain_secrets:
        file = Path.cwd() / f"Pulumi.{stack.rpartition('/')[2]}.yaml"
        plain_ones, unknown = secret_settings.in_plain_text(found, os.environ, file)
        if plain_ones:
            errors.append(secret_settings.plain_secrets(plain_ones, stack))
        if unknown:
            pulumi.log.warn(
                f"whether all of {', '.join(map(secret_settings.path_of, unknown))} are encrypted can't be told: some are, and {file} "
                "isn't the file that was read"
            )
    if places := secret_settings.left_open(found):
        error = secret_settings.still_open(places, stack)
        if pulumi.runtime.is_dry_run():
            pulumi.log.warn(f"`pulumi up` will refuse this:\n{error}")
        else:
            errors.append(error)
    return errors
