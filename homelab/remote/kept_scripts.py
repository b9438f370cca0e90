"""Scripts that lie on a host, so that a resource's input, which is in Pulumi's state twice, is what a script is told
and not its text (ADR 31).

A composed text (homelab/remote/scripts.py) is made of assignments and texts that are the same for everybody: scripts,
and files that they install. Each of these is kept in /var/lib/homelab/scripts/OWNER as NAME.SUM; SUM begins the SHA-256
of its content. In `by_reference` its name stands where the text was. So a changed script still changes what takes it,
and nothing else.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import re
import tarfile
from typing import NamedTuple

from homelab.remote import bash_source, scripts

# What commands of a host run, or install: beside these scripts, all of remote_scripts/files.
_SCRIPTS = (
    "card_libraries.sh",
    "card_nodes.sh",
    "card_nodes_boot.sh",
    "card_values.sh",
    "cluster_turn.sh",
    "cmdline.sh",
    "confirm_boot.sh",
    "container_gpus.sh",
    "container_restart.sh",
    "container_toolkit.sh",
    "cuda_toolkit.sh",
    "handover.sh",
    "handover_hook.sh",
    "handover_host.sh",
    "in_container.sh",
    "nvidia_driver.sh",
    "nvidia_nodes.sh",
    "nvidia_repository.sh",
    "passthrough_test.sh",
    "reboot_host.sh",
    "rollback.sh",
    "vfio_initramfs.sh",
)
# What is shorter stays where it is.
_SHORT = 400
# What these undo isn't noted on the host alone.
_NOTED_ELSEWHERE = ("handover_hook.sh", "in_container.sh")
_FILES = (".cu", ".py", ".service", ".sh", ".timer")
_LOADER = scripts.FOLDER / "lib" / "kept_scripts.sh"
_FOLDER = "/var/lib/homelab/scripts"


class KeptText(NamedTuple):
    """`name`: NAME.SUM; `text`: without its last newline; `quoted`: as it stands in an argument; `twice`: in an
    argument of what is an argument."""

    name: str
    text: str
    quoted: str
    twice: str


@functools.cache
def texts() -> tuple[KeptText, ...]:
    """All that is kept; the longest first, since one may be in another."""
    found = {name: scripts.compose(name) for name in _SCRIPTS}
    files = (
        path.name for path in (scripts.FOLDER / "files").iterdir() if path.suffix in _FILES and path.name[0] != "."
    )
    found |= {f"files-{name}": scripts.file(name) for name in files}
    kept = [_kept(name, text.rstrip("\n")) for name, text in found.items() if len(text) > _SHORT]
    return tuple(sorted(kept, key=lambda one: len(one.text), reverse=True))


def _kept(name: str, text: str) -> KeptText:
    digest = hashlib.sha256(text.encode()).hexdigest()
    quoted = _quoted(text)
    return KeptText(f"{name}.{digest[:16]}", text, quoted, _quoted(quoted))


def _quoted(text: str) -> str:
    return text.replace("'", "'\"'\"'")  # as shlex.quote has it


@functools.cache
def version() -> str:
    """Changes with each of them."""
    return hashlib.sha256("\n".join(sorted(one.name for one in texts())).encode()).hexdigest()[:16]


def owner(project: str, stack: str, host: str) -> str:
    """The name of a stack's folder on a host.

    :param host: its name in the settings: under another one it is another host, as long as both are there.
    """
    digest = hashlib.sha256("\0".join((project, stack, host)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{project}-{stack}-{host}")[:80] + f"-{digest[:8]}"


def owner_of(urn: str, host: str) -> str:
    """The same, of the stack that a resource belongs to."""
    whose, _, rest = urn.partition("::")
    return owner(rest.partition("::")[0], whose.rpartition(":")[2], host)


@functools.cache
def _loader() -> str:
    return bash_source.stripped(_LOADER.read_text(encoding="utf-8"))


def by_reference(text: str, owned_by: str) -> str:
    """The same standard input for `bash -s -- VERB` on a host that keeps the scripts; `text` itself where none of them
    is in it.

    :param owned_by: as of `owner`.
    """
    head, program = _apart(text)
    used = [program.name] if program else []
    for one in texts():
        for place, known in (("KEPT_TEXT", one.quoted), ("KEPT_QUOTED", one.twice)):
            if known in head:
                used.append(one.name)
                head = head.replace(known, f"'\"${{{place}[{one.name}]}}\"'")
    if not used:
        return text
    notes = "yes" if program and program.name.rpartition(".")[0] not in _NOTED_ELSEWHERE else "no"
    end = f'eval "${{KEPT_TEXT[{program.name}]}}"\nexit 1\n' if program else ""
    needed = " ".join(dict.fromkeys(used))
    return (
        f"KEPT_IN={_FOLDER}/{owned_by} KEPT_VERB=$1 KEPT_NOTES={notes}\n{_loader()}need_kept_scripts "
        f"{needed}\n{head}{end}"
    )


def _apart(text: str) -> tuple[str, KeptText | None]:
    """A composed text's assignments, and its script; None: it is none of `texts`."""
    end = text.rstrip("\n")
    for one in texts():
        if end.endswith(one.text) and (end == one.text or end[: -len(one.text)].endswith("\n")):
            return end.removesuffix(one.text), one
    return text, None


def put(owned_by: str) -> str:
    """Standard input of kept_scripts.sh for `put`.

    :raises ValueError: that is no owner's name, and leads elsewhere.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", owned_by):
        raise ValueError(f"no owner of scripts: {owned_by!r}")
    return scripts.compose("kept_scripts.sh", OWNER=owned_by, CONTENT=base64.b64encode(_archive()).decode("ascii"))


def in_use(owned_by: str) -> str:
    """Standard input of kept_scripts.sh for `apply`, and for `revert`, which takes them away."""
    return scripts.compose("kept_scripts.sh", OWNER=owned_by, CONTENT="")


@functools.cache
def _archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.TarFile(fileobj=packed, mode="w") as archive:
        for one in texts():
            about = tarfile.TarInfo(one.name)
            content = one.text.encode()
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)
