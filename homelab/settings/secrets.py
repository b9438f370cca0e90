"""Finds values that must not stay in the stack's file: secrets in plain text, and the example file's placeholders.

Pulumi tells a program which keys of its configuration have an encrypted value
(PULUMI_CONFIG_SECRET_KEYS), but not where in it: `homelab:hosts` is one key. So: no secret of a key that isn't among
them is encrypted. Of one that is, the stack's file tells, if it is the one that this configuration came from: its plain
values are the same. Pulumi doesn't say which file it read, and with `--config-file` it may be any. Without that file,
the only secret of a key is the encrypted one; of several it isn't known which, and the program says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from homelab.errors import HomelabError
from homelab.fields.paths import text_of
from homelab.fields.types import ENCRYPTED
from homelab.settings.parsing import decoded
from homelab.settings.stack_file import config_of, is_encrypted, parsed, readable

Place = tuple[str | int, ...]

# Placeholders in Pulumi.homelab.yaml for values that the user has to fill in.
_PLACEHOLDER = re.compile(r"FILL[-+]IN")


def texts(value: Any, place: Place = ()) -> Iterator[tuple[Place, str | SecretStr]]:
    """Every text in settings, with its place in the file."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from texts(getattr(value, name), (*place, field.alias or name))
        yield from texts(value.model_extra, place)
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, (*place, key))
    elif isinstance(value, str | SecretStr):
        yield place, value


def left_open(settings: BaseModel) -> list[Place]:
    """The places that still have a placeholder of the example file."""
    return [place for place, value in texts(settings) if _PLACEHOLDER.search(_text(value))]


def secrets(settings: BaseModel) -> list[Place]:
    """The places of secrets: of passwords and keys, and of addresses with a password."""
    return [
        place
        for place, value in texts(settings)
        if isinstance(value, SecretStr) and _is_secret(_text(value)) and not _PLACEHOLDER.search(_text(value))
    ]


def _text(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _is_secret(text: str) -> bool:
    # A proxy's address is a secret only with a user and a password in it.
    return text != ENCRYPTED and (not re.match(r"https?://", text) or "@" in text)


def in_plain_text(settings: BaseModel, environ: Mapping[str, str], stack_file: Path) -> tuple[list[Place], list[Place]]:
    """The places of secrets in plain text, and of those that may be in plain text or encrypted.

    :param environ: the program's environment variables, as Pulumi sets them.
    :param stack_file: the stack's own file, whether or not it is the one that was read.
    """
    encrypted_keys = json.loads(environ.get("PULUMI_CONFIG_SECRET_KEYS") or "[]")
    configuration = json.loads(environ.get("PULUMI_CONFIG") or "{}")
    content, places = file_of_configuration(configuration, stack_file), secrets(settings)
    # A key of the project's own may stand without the project's name.
    written = {str(key).removeprefix("homelab:"): readable(value) for key, value in config_of(content).items()}
    plain: list[Place] = []
    uncertain: list[Place] = []
    for key in dict.fromkeys(place[0] for place in places):
        secrets_of_key = [place for place in places if place[0] == key]
        if f"homelab:{key}" not in encrypted_keys:
            plain += secrets_of_key
        elif key in written:
            encrypted = [place for place, text in texts(written[key], (key,)) if text == ENCRYPTED]
            plain += [place for place in secrets_of_key if not any(place[: len(one)] == one for one in encrypted)]
        elif len(secrets_of_key) > 1:
            uncertain += secrets_of_key
    return plain, uncertain


def file_of_configuration(whole: Mapping[str, str], stack_file: Path) -> Any:
    """The content of the stack's own file, if the configuration may have come from it, that is, has all keys below the
    file's `config:`; None: it came from another file.

    :param whole: key -> text, as Pulumi hands it over.
    """
    try:
        content = parsed(text_of(stack_file))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for key, value in config_of(content).items():
        text = whole.get(str(key), whole.get(f"homelab:{key}"))
        if text is None or not _same(value, text if isinstance(value, str) else decoded(text)):
            return None
    return content


def _same(written: Any, loaded: Any) -> bool:
    if is_encrypted(written):
        return True
    if isinstance(written, dict) and isinstance(loaded, dict):
        return written.keys() == loaded.keys() and all(_same(written[key], loaded[key]) for key in written)
    if isinstance(written, list) and isinstance(loaded, list):
        return len(written) == len(loaded) and all(map(_same, written, loaded))
    return bool(written == loaded)


def path_of(place: Place) -> str:
    """A place as `pulumi config set --path` takes it."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "homelab:" + "".join(parts).removeprefix(".")


def encrypting(place: Place, stack: str) -> str:
    """The command that puts a secret into the file encrypted. It asks for the value, which so is in no shell's
    history."""
    file = " < FILE" if place[-1] == "privateKey" else ""
    return f"pulumi config set --stack {stack} --secret --path '{path_of(place)}'{file}"


def plain_secrets(places: list[Place], stack: str) -> HomelabError:
    """The refusal of secrets in plain text."""
    return HomelabError(
        wanted="secrets that are encrypted in the stack's file",
        found="in plain text: " + ", ".join(path_of(place) for place in places),
        why="the file is meant for git, where everybody who can read it would have them; replace a secret that was "
        "there already by a new one",
        next="\n        ".join(encrypting(place, stack) for place in places)
        + "\n        or, where the file is yours alone, set homelab:allowPlainSecrets: true",
    )


def still_open(places: list[Place], stack: str) -> HomelabError:
    """The refusal of the example file's values."""
    return HomelabError(
        wanted="your own values in place of the example's",
        found="still as in the example: " + ", ".join(path_of(place) for place in places),
        why="they fit no host: with them none can be reached, and none recognised",
        next="\n        ".join(_filling_in(place, stack) for place in places),
    )


def _filling_in(place: Place, stack: str) -> str:
    leaf = str(place[-1])
    if leaf in ("password", "privateKey"):
        return encrypting(place, stack)
    keyscan = "the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address"
    return f"{path_of(place)}: {keyscan if leaf == 'hostKey' else 'see docs/settings.md'}"
