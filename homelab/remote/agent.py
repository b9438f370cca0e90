"""The agent: this program's part on a host, in Python's standard library alone (remote_scripts/, ADR 33).

A host keeps it as one file, which a resource's command runs with a request in JSON: the layer, its input, and a digest
of the layer's modules. So a changed module runs only those layers again that use it. A session uses the kept agent if
that has this version; otherwise it sends the modules along, and they stay in memory.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homelab import earlier
from homelab.later import later
from homelab.remote import scripts
from homelab.remote.scripts import FOLDER
from remote_scripts import installed
from remote_scripts.tools import modules
from remote_scripts.tools.modules import AGENT, PACKAGE
from remote_scripts.tools.places import HOME, PYTHON
from remote_scripts.tools.plain import to_plain

if TYPE_CHECKING:
    from homelab import symptoms
else:
    symptoms = later("homelab.symptoms")

_NAME = "agent.pyz"
_AGENTS = f"{HOME}/agents"
_ENTRY, _INSTALLED = "start", f"{PACKAGE}.installed"
_TABLES = f"{PACKAGE}.tables"
# What the tables are made of. To make them takes longer than all else that a digest needs.
_MADE_OF = tuple(Path(__file__).parents[1] / name for name in ("symptoms.py", "nvidia/data/symptoms.yaml"))


def place(owner: str) -> str:
    """Where a host keeps the agent of a stack.

    :param owner: the stack's folder there (`homelab.host.stack_folder.owner`).
    :raises ValueError: it has characters that could lead out of the folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", owner):
        raise ValueError(f"no owner of an agent: {owner!r}")
    return f"{_AGENTS}/{owner}/{_NAME}"


installed.TEXTS = {
    path.stem: scripts.file(path.name) for path in sorted((FOLDER / "files").iterdir()) if path.suffix in (".pl", ".sh")
}


@functools.cache
def _source(module: str) -> str:
    """The text of a module of the package, with the line ends that it has in the repository; empty: no module."""
    if module == _INSTALLED:
        return f"TEXTS = {json.dumps(dict(installed.TEXTS), indent=0)}\n"
    if module == _TABLES:
        return f"SYMPTOMS = {symptoms.packed()!r}\n"
    return modules.source(module)


@functools.cache
def layers() -> tuple[str, ...]:
    """The layers that there are, by the names of their modules."""
    names = (path.stem for path in (FOLDER / "layers").glob("*.py"))
    return tuple(sorted(name for name in names if not name.startswith("_")))


@functools.cache
def _imported(module: str) -> frozenset[str]:
    return modules.imported(modules.source(module))


def modules_of(*names: str) -> frozenset[str]:
    """The modules, with all that they import of the package, and what those import."""
    return modules.needed(*names, imports=_imported)


@functools.cache
def _digest(module: str) -> str:
    texts = [file.read_text(encoding="utf-8") for file in _MADE_OF] if module == _TABLES else [_source(module)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


@functools.cache
def code_of(layer: str) -> str:
    """A digest of the modules that do a layer's work, in 16 hexadecimal digits."""
    names = sorted(modules_of(AGENT, f"{PACKAGE}.layers.{layer}"))
    return hashlib.sha256("\0".join(f"{name} {_digest(name)}" for name in names).encode()).hexdigest()[:16]


def _codes() -> dict[str, str]:
    return {layer: code_of(layer) for layer in layers()}


@functools.cache
def version() -> str:
    """A digest of the agent with all its layers, in 16 characters."""
    parts = (json.dumps(_codes(), sort_keys=True), *(_source(f"{PACKAGE}.{name}") for name in (_ENTRY, "put_agent")))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{earlier.AGENTS}{digest}"[:16]


@functools.cache
def archive() -> bytes:
    """The sources of the agent with all its layers, as a zip: the same bytes each time, the version at their end."""
    names = modules_of(AGENT, *(f"{PACKAGE}.layers.{layer}" for layer in layers()))
    texts = {name: _source(name) for name in names}
    texts[f"{PACKAGE}.codes"] = f"OF_LAYERS = {json.dumps(_codes(), sort_keys=True)}\n"
    texts["__main__"] = _source(f"{PACKAGE}.{_ENTRY}")
    return modules.packed(texts, comment=version())


@functools.cache
def _archive_text() -> str:
    return base64.b64encode(archive()).decode()


def put(owner: str) -> str:
    """A program in Python for a host's standard input, which puts the agent there."""
    return f"{_source(f'{PACKAGE}.put_agent')}\nput({place(owner)!r}, {_archive_text()!r})\n"


def command_to_put(user: str) -> str:
    """The command line that takes the program of `put` from standard input."""
    return _as_root(f"{PYTHON} -", user)


def request(
    layer: str,
    wanted: Any,
    *,
    seconds: int = 0,
    generation: int | str = 0,
    is_act: bool = False,
    ctid: int = 0,
    proxy: str = "",
) -> str:
    """What the agent is asked, in JSON that a person can read in a preview.

    :param layer: its name.
    :param wanted: the layer's `Wanted`.
    :param seconds: until the host kills it; 0: never.
    :param generation: nothing for the agent; a new one makes Pulumi ask again.
    :param is_act: whichever version of its modules may do it, and a new one is no reason to do it again.
    :param ctid: of a container in which it is done; 0: on the system itself.
    :param proxy: for downloads; one with a password makes the text a secret.
    """
    more = {"seconds": seconds, "code": "" if is_act else code_of(layer), "proxy": proxy, "generation": generation}
    parts = {"layer": layer, **({"ctid": ctid} if ctid else {}), "input": to_plain(wanted)}
    parts |= {key: value for key, value in more.items() if value}
    return json.dumps(parts, indent=1, ensure_ascii=False) + "\n"


def command(verb: str, user: str, owner: str, is_last: bool = False) -> str:
    """The command line that asks the agent on a host, with a request on standard input; as root, through sudo for any
    other user.

    If /var/lib/homelab is gone as a whole (the host's root was rolled back to before this program), `revert` does
    nothing: the originals are noted nowhere else.

    :param is_last: this command removes the agent's own folder. If the agent is gone, an earlier such command was cut
        short. If Python is gone, an earlier step has removed it with what it had installed. What is left is this
        program's, and is removed without them.
    """
    # pulumi-command quotes this text in the error of whatever fails: it stays a few words.
    lines = [f'agent="$HOMELAB_ROOT"{place(owner)}']
    if verb == "revert":
        lines.append(f'[ -e "$HOMELAB_ROOT"{HOME} ] || exit 0')
    if is_last:
        parents = f'"$HOMELAB_ROOT"{_AGENTS} "$HOMELAB_ROOT"{HOME}'
        gone = f'rm -rf -- "${{agent%/*}}" && {{ rmdir -- {parents} 2>/dev/null; :; }}'
        lines.append(f'[ -s "$agent" ] && [ -x {PYTHON.split()[0]} ] || {{ {gone}; exit; }}')
    else:  # Python does nothing for an empty file, and calls that a success
        missing = "$agent is missing or empty: run pulumi up --refresh, then the same again"
        lines.append(f'[ -s "$agent" ] || {{ echo "{missing}"; exit 1; }}')
    return _as_root("\n".join([*lines, f'{PYTHON} "$agent" {verb}']), user)


def _as_root(command_line: str, user: str) -> str:
    # The command line itself for root; any other user needs sudo for bash (docs/settings.md).
    return command_line if user == "root" else f"sudo -n bash -c {shlex.quote(command_line)}"


# What a host says that has no agent of the version that is asked for.
WANTS_AGENT = b"agent?\n"
# Reads requests from standard input, and has in memory the agent that does them: a copy of one that a stack keeps
# there, or one that comes as a second line. An older Python can't even import it, and understands this text.
_IN_MEMORY = """\
import sys
if sys.version_info < (3, 10):
    print("wanted: Python 3.10 or later at " + sys.executable)
    print("found:  Python " + sys.version.split()[0])
    print("why:    this program's part on a host and in a VM is written for it; nothing was changed")
    print("next:   upgrade this system: Debian 12 and Proxmox VE 8 have Python 3.11, Ubuntu 22.04 has 3.10")
    sys.exit(1)
import base64, hashlib, json, os, pathlib
def kept(version):
    try:
        for file in pathlib.Path(os.environ.get("HOMELAB_ROOT") or "/", "var/lib/homelab/agents").glob("*/agent.pyz"):
            content = file.read_bytes()
            whole = hashlib.sha256(content[:-64]).hexdigest()
            if content.endswith((version + whole).encode()):
                return content
    except OSError:  # a disk that can't be read, or one that was just taken away
        pass
    return None
asked = json.loads(sys.stdin.buffer.readline())
content = kept(asked["version"])
if content is None:
    os.write(1, b"agent?\\n")
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\\n"):
        sys.exit("the connection ended before all of the agent had come")
    content = base64.b64decode(line)
memory = os.memfd_create("agent")
with open(memory, "wb", closefd=False) as file:
    file.write(content)
del content
sys.path.insert(0, f"/proc/self/fd/{memory}")
from remote_scripts import agent, codes
for request in asked["requests"]:
    status = agent.main([asked["verb"]], codes.OF_LAYERS, json.dumps(request).encode())
    if status:
        sys.exit(status)
"""


def command_in_memory(user: str) -> str:
    """The command line that takes requests from standard input, and writes nothing."""
    return _as_root(f"{PYTHON} -c {shlex.quote(_IN_MEMORY)}", user)


def asked(verb: str, *texts: str) -> str:
    """A line of standard input for `command_in_memory`; where the answer to it is WANTS_AGENT, `itself` has to follow.

    :param texts: the requests. Each is answered with a line; the first that fails is the last one.
    """
    return json.dumps({"verb": verb, "requests": [*map(json.loads, texts)], "version": version()}) + "\n"


def itself() -> str:
    """The agent, as a line."""
    return f"{_archive_text()}\n"
