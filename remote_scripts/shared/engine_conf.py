"""The configuration of container engines: what nvidia-ctk puts in, and how that is taken out again.

nvidia-ctk writes an engine's configuration anew, with all that was in it. It works on copies, so that a file of an
engine's becomes homelab's as any other: what was there is kept, and given back byte for byte. Where another program has
changed such a file since, docker's loses our runtime alone, and containerd's own stays as it is: without our drop-in in
the folder that it imports, that means nothing.
"""

from __future__ import annotations

import json
from typing import Any

from remote_scripts.shared.packages import Packages
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

LAYER = "toolkit"
_DOCKER = "/etc/docker/daemon.json"
_CONF, _DROP_INS = "/etc/containerd/config.toml", "/etc/containerd/conf.d"
#: Engine -> its files, each with nvidia-ctk's option for it.
FILES: dict[str, dict[str, str]] = {
    "docker": {_DOCKER: "--config"},
    "containerd": {f"{_DROP_INS}/99-nvidia.toml": "--drop-in-config", _CONF: "--config"},
}
_COPIES = "/run/homelab/engine"
# What nvidia-ctk adds to docker's configuration.
_ADDED = (("runtimes", "nvidia"), ("features", "cdi"))
_BYTES = 1 << 20


def configure(packages: Packages, engine: str, command: tuple[str, ...]) -> None:
    """Has nvidia-ctk change it. Only what changes its meaning is written, and leads to a restart.

    :raises Failure: nvidia-ctk can't do it.
    :raises OSError: a file can't be read, such as a link that leads nowhere.
    """
    system, files = packages.system, packages.system.files
    paths = FILES[engine]
    # containerd's own file names the folder in which the other one is: while they are copies, that of the copies.
    there, copied = _DROP_INS.encode(), files.name(f"{_COPIES}{_DROP_INS}").encode()
    files.remove_tree(_COPIES)
    before = {path: files.need(path, _BYTES) for path in paths}
    for path, content in before.items():
        files.need_folder(f"{_COPIES}{path}".rpartition("/")[0])
        if content is not None:
            files.write(f"{_COPIES}{path}", content.replace(there, copied), 0o600)
    options = [f"{option}={files.name(f'{_COPIES}{path}')}" for path, option in paths.items()]
    done = packages.do(*command, *options)
    if done.status != 0:
        packages.explain(
            done,
            f"{packages.software.context.name}: {engine} configured by `{' '.join(command)}`",
            "without it no container gets a card",
            f"correct {' '.join(paths)} as the lines above say, then run `pulumi up` again",
        )
    for path, content in before.items():
        new = (files.need(f"{_COPIES}{path}", _BYTES) or b"").replace(copied, there)
        if not _means_the_same(path, content, new):
            mode = files.mode(files.resolved(path)) if content is not None else 0o644
            files.set_pending(f"restart-{engine}")
            _release(system, path)
            files.put(LAYER, path, mode, new)
    files.remove_tree(_COPIES)


def give_back(system: System, engine: str) -> None:
    """Of an engine that isn't, or is no longer, meant."""
    for path in FILES[engine]:
        if system.files.has_put(LAYER, path):
            system.files.set_pending(f"restart-{engine}")
        _release(system, path)
        system.files.drop(LAYER, path)


def _release(system: System, path: str) -> None:
    """A file that others have changed since is theirs, without what is ours."""
    files = system.files
    if not files.is_edited(LAYER, path):
        return
    content = files.need(path, _BYTES) or b""
    real = files.resolved(path)  # by a link of theirs
    files.remember(real, f"{HOME}/files/{LAYER}{path}", f"{HOME}/sums{path}", f"{HOME}/kept{path}")
    if path == _DOCKER:
        files.keep_edit(LAYER, path)
        files.write(real, _without_runtime(content), files.mode(real))
    files.remove(f"{HOME}/files/{LAYER}{path}")
    files.forget(path)
    files.changed = True
    system.log.say(f"gave back {path}, which was changed since")


def _means_the_same(path: str, before: bytes | None, now: bytes) -> bool:
    if path != _DOCKER:
        return before == now
    try:
        return bool(_load(before) == _load(now))
    except ValueError:
        return before == now


def _load(content: bytes | None) -> Any:
    return json.loads(content) if content and content.strip() else {}


def _without_runtime(content: bytes) -> bytes:
    """Without the keys that nvidia-ctk adds; as it is where it isn't JSON, which docker can't read either."""
    try:
        current = _load(content)
    except ValueError:
        return content
    if not isinstance(current, dict):
        return content
    for outer, key in _ADDED:
        inner = current.get(outer)
        if isinstance(inner, dict) and key in inner:
            del inner[key]
            if not inner:
                del current[outer]
    if current.get("default-runtime") == "nvidia":
        del current["default-runtime"]
    return json.dumps(current, indent=4, ensure_ascii=False).encode() + b"\n"
