"""docker's configuration: the keys of NVIDIA's runtime, put in and taken out again.

The file becomes homelab's as any other: what was there is kept, and given back byte for byte. Where another program has
changed it since, it loses our keys alone.
"""

from __future__ import annotations

import json
from typing import Any

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

LAYER = "toolkit"
DOCKER = "/etc/docker/daemon.json"
#: The step that must follow: docker takes it over.
RESTART = "restart-docker"
# As nvidia-ctk writes it.
_RUNTIME = {"args": [], "path": "nvidia-container-runtime"}
_BYTES = 1 << 20


def configure(system: System, name: str, *, cdi: bool) -> None:
    """Puts them in. Only what changes its meaning is written, and leads to a restart.

    :param name: the system's, for messages.
    :param cdi: whether docker is told to know CDI's names, which 25 to 28.2 must be.
    :raises Failure: the file isn't a JSON object.
    :raises OSError: it can't be read, such as a link that leads nowhere.
    """
    files = system.files
    content = files.need(DOCKER, _BYTES)
    try:
        current = _load(content)
        new = {**current, "runtimes": {**current.get("runtimes", {}), "nvidia": _RUNTIME}}
        if cdi:
            new["features"] = {**current.get("features", {}), "cdi": True}
    except (ValueError, TypeError) as error:
        raise Failure(
            f"{name}: {DOCKER} as a JSON object",
            f"{error}",
            "NVIDIA's runtime is put into it; docker doesn't start with such a file, either",
            "correct it, then run `pulumi up` again",
        ) from error
    if new != current:
        files.set_pending(RESTART)
        _release(system)
        files.put(LAYER, DOCKER, 0o644 if content is None else files.mode(files.resolved(DOCKER)), _text(new))


def give_back(system: System) -> None:
    """Where docker isn't, or is no longer, meant."""
    if system.files.has_put(LAYER, DOCKER):
        system.files.set_pending(RESTART)
    _release(system)
    system.files.drop(LAYER, DOCKER)


def _release(system: System) -> None:
    """A file that others have changed since is theirs, without what is ours."""
    files = system.files
    if not files.is_edited(LAYER, DOCKER):
        return
    content = files.need(DOCKER, _BYTES) or b""
    real = files.resolved(DOCKER)  # by a link of theirs
    files.remember(real, f"{HOME}/files/{LAYER}{DOCKER}", f"{HOME}/sums{DOCKER}", f"{HOME}/kept{DOCKER}")
    files.keep_edit(LAYER, DOCKER)
    files.write(real, _without_runtime(content), files.mode(real))
    files.remove(f"{HOME}/files/{LAYER}{DOCKER}")
    files.forget(DOCKER)
    files.changed = True
    system.log.say(f"gave back {DOCKER}, which was changed since")


def _load(content: bytes | None) -> Any:
    return json.loads(content) if content and content.strip() else {}


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=4, ensure_ascii=False).encode() + b"\n"


def _without_runtime(content: bytes) -> bytes:
    """Without our keys; as it is where it isn't as docker reads it."""
    try:
        current = _load(content)
        for outer, key in (("runtimes", "nvidia"), ("features", "cdi")):
            current.get(outer, {}).pop(key, None)
            if current.get(outer) == {}:
                del current[outer]
        if current.get("default-runtime") == "nvidia":
            del current["default-runtime"]
    except (ValueError, AttributeError):
        return content
    return _text(current)
