"""The configuration of container engines: what nvidia-ctk puts in, and how that is taken out again.

nvidia-ctk writes an engine's configuration anew, with all that was in it. What was there before is kept, what it became
is noted (the record of the layer toolkit, `pending` while it is being changed). As long as no other program changes it,
the kept bytes are given back; else our runtime is taken out of docker's daemon.json, our drop-in of containerd goes,
and its own config.toml stays as it is. Where such a file is a link, nvidia-ctk writes through it: what it leads to is
kept and given back, and the link stays.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME, State
from remote_scripts.tools.system import System

LAYER = "toolkit"
_DOCKER = "/etc/docker/daemon.json"
_DROP_IN = "/etc/containerd/conf.d/99-nvidia.toml"
#: Engine -> its files, in the order in which they are looked at.
FILES: dict[str, tuple[str, ...]] = {"docker": (_DOCKER,), "containerd": (_DROP_IN, "/etc/containerd/config.toml")}
_BEFORE = "/run/homelab/before"
# What nvidia-ctk adds to docker's configuration.
_ADDED = (("runtimes", "nvidia"), ("features", "cdi"))
# The same of containerd's own, beside the version where there was none.
_IMPORTED = "/etc/containerd/conf.d/*.toml"
_BYTES = 1 << 20


def state(system: System, path: str) -> State | Literal["absent", "pending"]:
    """absent: homelab has none; pending: a run was killed while it was changed; changed: by others, since."""
    record = f"{HOME}/files/{LAYER}{path}"
    if not system.files.exists(record):
        return "absent"
    return "pending" if system.files.line(record) == "pending" else system.files.state(LAYER, path)


def begin_change(system: System, path: str) -> None:
    """Called before nvidia-ctk writes to it.

    :raises OSError: it can't be read, such as a link that leads nowhere.
    """
    files = system.files
    files.need(path, _BYTES)
    current = state(system, path)
    real = _real(system, path)
    files.about_to_change()
    files.remember(*_noted(path), real)
    if current == "absent":
        if files.exists(real):
            files.keep(path, real)
        else:
            files.forget(path)
        files.note(_noted(path)[2], b"pending\n")
    elif _is_edited(system, path, current):  # what is to be given back has changed as well
        _keep_without_ours(system, path)
    files.make_folder(path.rpartition("/")[0])
    files.remove(f"{_BEFORE}{path}")
    if files.exists(real):
        files.copy(real, f"{_BEFORE}{path}")


def end_change(system: System, path: str) -> bool:
    """Called after it: whether it means something else now. The bytes stay as they were where it doesn't."""
    files = system.files
    kept, _, record = _noted(path)
    before = f"{_BEFORE}{path}"
    is_same = _means_the_same(system, path, before)
    if is_same:
        if files.exists(before) and files.need(before, _BYTES) != files.need(path, _BYTES):
            files.copy(before, _real(system, path))
        # It was so before: then it isn't homelab's.
        if state(system, path) == "pending" and _means_the_same(system, path, kept):
            files.remove(record, before)
            files.forget(path)
            return False
    else:
        system.log.say(f"wrote {path}")
    files.remove(before)
    if files.exists(path):
        files.note(record, f"{files.mode(path):o} {files.digest(path)}\n".encode())
    else:
        files.remove(record)
    return not is_same


def give_back(system: System, path: str) -> bool:
    """Whether there was anything of homelab's.

    :raises Failure: what is to be given back isn't what was kept, or docker's configuration isn't JSON.
    """
    files = system.files
    current = state(system, path)
    if current == "absent":
        system.files.forget(path)  # a run that was cut short before it noted anything had kept it already
        return False
    kept, sums, record = _noted(path)
    files.need_kept(path)
    real = _real(system, path)
    files.about_to_change()
    files.remember(real, record, sums, kept)
    if _is_edited(system, path, current):
        _keep_without_ours(system, path)
    if current != "missing":  # it was removed since: so it stays
        if files.exists(kept):
            files.copy(kept, real)
        else:
            files.remove(path)
    files.remove(record)
    files.forget(path)
    system.log.say(f"gave back {path}")
    return True


def _real(system: System, path: str) -> str:
    """The file that it is, where it is a link."""
    return (system.files.is_link(path) and system.files.resolved(path)) or path


def _noted(path: str) -> tuple[str, str, str]:
    """Where its copy is, the copy's sum, and the record."""
    return f"{HOME}/kept{path}", f"{HOME}/sums{path}", f"{HOME}/files/{LAYER}{path}"


def _means_the_same(system: System, path: str, other: str) -> bool:
    files = system.files
    contents = [files.need(file, _BYTES) for file in (path, other)]
    if None in contents or contents[0] == contents[1]:
        return contents[0] == contents[1]
    try:
        return path == _DOCKER and _load(contents[0]) == _load(contents[1])
    except ValueError:
        return False


def _load(content: bytes | None) -> Any:
    return json.loads(content) if content and content.strip() else {}


def _is_edited(system: System, path: str, current_state: str) -> bool:
    """Whether it was changed since: of one that a run was killed in changing, whether it says more than what
    was kept with what nvidia-ctk adds.
    """
    current, kept = (system.files.need(file, _BYTES) for file in (path, _noted(path)[0]))
    if current is None or current == kept:  # also one that a run which was cut short has given back
        return False
    if current_state != "pending" or path == _DROP_IN:
        return current_state == "changed"
    if path == _DOCKER:
        try:
            before = _load(kept)
            return bool(_without_runtime(_load(current), before) != before)
        except ValueError:  # nvidia-ctk hadn't written all of it
            return False
    if current.endswith(b"\n"):
        return _containerds(current) != _containerds(kept)
    return not {*_containerds(current[: current.rfind(b"\n") + 1])} <= {*_containerds(kept)}  # nor here


def _containerds(content: bytes | None) -> list[str]:
    """What containerd's own says without what nvidia-ctk adds, whatever the order, the quotes and the comments; with
    values over several lines, which that joins, two that say the same may differ.
    """
    lines = (line.partition("#")[0] for line in (content or b"").decode("utf-8", "surrogateescape").splitlines())
    bare = (re.sub(rf"[\s'\"]|{re.escape(_IMPORTED)}['\"]?,?", "", line) for line in lines)
    return sorted(line for line in bare if line and line != "imports=[]" and not line.startswith("version="))


def _keep_without_ours(system: System, path: str) -> None:
    """What is to be given back: the file as it is now, without what is ours; nothing where that is nothing."""
    files = system.files
    kept, sums, _ = _noted(path)
    text = _without_ours(system, path, kept)
    if not text.strip(b" \t\r\n{}") and not files.exists(kept):
        files.forget(path)
        return
    files.need_folder(kept.rpartition("/")[0])
    files.remove(sums)  # without one it counts as whole
    files.write(kept, text, files.mode(_real(system, path)))
    files.note_kept(path)


def _without_ours(system: System, path: str, kept: str) -> bytes:
    files = system.files
    if path == _DROP_IN:
        return files.need(kept, _BYTES) or b""
    current = files.need(path, _BYTES) or b""
    if path != _DOCKER:
        return current  # the user's own, which imports a folder: without homelab's file in it, that means nothing
    try:
        left = _without_runtime(_load(current), _load(files.need(kept, _BYTES)))
    except ValueError as error:
        raise Failure(
            f"{path} without NVIDIA's runtime",
            f"it isn't JSON: {error}",
            "it was changed after this program wrote it, and docker can't read it either",
            "correct it, then run the same again",
        ) from error
    return json.dumps(left, indent=4, ensure_ascii=False).encode() + b"\n"


def _without_runtime(current: Any, original: Any) -> Any:
    """Without the keys that nvidia-ctk adds, or with the value that they had before."""
    if not isinstance(current, dict):
        return current
    original = original if isinstance(original, dict) else {}
    for outer, key in _ADDED:
        inner = current.get(outer)
        if not isinstance(inner, dict):
            continue
        earlier = original.get(outer)
        if key in inner:
            if isinstance(earlier, dict) and key in earlier:
                inner[key] = earlier[key]
            else:
                del inner[key]
        if not inner and outer not in original:
            del current[outer]
    runtimes = current.get("runtimes")
    if current.get("default-runtime") == "nvidia" and not (isinstance(runtimes, dict) and "nvidia" in runtimes):
        del current["default-runtime"]
    return current
