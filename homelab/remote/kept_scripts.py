"""Scripts kept on a host, so that a resource's input, which is in Pulumi's state twice, has a script's arguments and
not its text (ADR 31).

A composed text (homelab/remote/scripts.py) is made of assignments and of texts that don't depend on settings: scripts,
and files that they install. Each of these is kept in /var/lib/homelab/scripts/OWNER as NAME.SUM; SUM begins the SHA-256
of its content. `by_reference` puts that name in the text's place. So a changed script still changes the resources that
use it, and no others.
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

from homelab.remote import agent, bash_source, scripts
from remote_scripts.layers.kept_scripts import Wanted

# Scripts that a host's commands run or install. All of remote_scripts/files is kept, too.
_SCRIPTS = ("in_container.sh",)
# A text of at most so many characters isn't kept, but stays in the input.
_SHORT_CHARACTERS = 400
# Scripts whose originals aren't noted on the host alone.
_NOTED_ELSEWHERE = ("in_container.sh",)
_FILES = (".cu", ".py", ".service", ".sh", ".timer")
_LOADER = scripts.FOLDER / "lib" / "kept_scripts.sh"
_FOLDER = "/var/lib/homelab/scripts"


class KeptText(NamedTuple):
    """A text that hosts keep. `name`: NAME.SUM; `text`: without its last newline; `quoted`: the text in an argument of
    a script; `quoted_twice`: in an argument of a script that is an argument itself.
    """

    name: str
    text: str
    quoted: str
    quoted_twice: str


@functools.cache
def texts() -> tuple[KeptText, ...]:
    """All texts that hosts keep; the longest first, since one may contain another."""
    by_name = {name: scripts.compose(name) for name in _SCRIPTS}
    files = (
        path.name for path in (scripts.FOLDER / "files").iterdir() if path.suffix in _FILES and path.name[0] != "."
    )
    by_name |= {f"files-{name}": scripts.file(name) for name in files}
    kept = [_kept(name, text.rstrip("\n")) for name, text in by_name.items() if len(text) > _SHORT_CHARACTERS]
    return tuple(sorted(kept, key=lambda kept_text: len(kept_text.text), reverse=True))


def _kept(name: str, text: str) -> KeptText:
    digest = hashlib.sha256(text.encode()).hexdigest()
    quoted = _quoted(text)
    return KeptText(f"{name}.{digest[:16]}", text, quoted, _quoted(quoted))


def _quoted(text: str) -> str:
    return text.replace("'", "'\"'\"'")  # as shlex.quote has it


@functools.cache
def version() -> str:
    """A digest of all kept texts and of the agent, in 16 hexadecimal digits."""
    names = [*sorted(kept_text.name for kept_text in texts()), agent.version()]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def owner(project: str, stack: str, host: str) -> str:
    """The name of a stack's folder of kept scripts on a host.

    :param host: its name in the settings; the same machine under another name is another host, as both may be in the
        state at once.
    """
    digest = hashlib.sha256("\0".join((project, stack, host)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{project}-{stack}-{host}")[:80] + f"-{digest[:8]}"


def owner_of(urn: str, host: str) -> str:
    """The name of the folder of kept scripts (`owner`) of the stack that a resource belongs to.

    :param urn: the resource's.
    :param host: its name in the settings.
    """
    stack_part, _, rest = urn.partition("::")
    return owner(rest.partition("::")[0], stack_part.rpartition(":")[2], host)


@functools.cache
def _loader() -> str:
    return bash_source.stripped(_LOADER.read_text(encoding="utf-8"))


def by_reference(text: str, owner_name: str) -> str:
    """A composed text for `bash -s -- VERB` on a host that keeps the scripts: with their names instead of their texts;
    `text` itself if it contains none of them.

    :param owner_name: as `owner` returns it.
    """
    head, program = _split(text)
    names = [program.name] if program else []
    for kept_text in texts():
        for array, argument in (("KEPT_TEXT", kept_text.quoted), ("KEPT_QUOTED", kept_text.quoted_twice)):
            if argument in head:
                names.append(kept_text.name)
                head = head.replace(argument, f"'\"${{{array}[{kept_text.name}]}}\"'")
    if not names:
        return text
    notes = "yes" if program and program.name.rpartition(".")[0] not in _NOTED_ELSEWHERE else "no"
    end = f'eval "${{KEPT_TEXT[{program.name}]}}"\nexit 1\n' if program else ""
    needed = " ".join(dict.fromkeys(names))
    return (
        f"KEPT_IN={_FOLDER}/{owner_name} KEPT_VERB=$1 KEPT_NOTES={notes}\n{_loader()}need_kept_scripts "
        f"{needed}\n{head}{end}"
    )


def _split(text: str) -> tuple[str, KeptText | None]:
    """Splits a composed text into its assignments and its script; None: the script isn't kept."""
    stripped_text = text.rstrip("\n")
    for kept_text in texts():
        if stripped_text.endswith(kept_text.text) and (
            stripped_text == kept_text.text or stripped_text[: -len(kept_text.text)].endswith("\n")
        ):
            return stripped_text.removesuffix(kept_text.text), kept_text
    return text, None


def put(owner_name: str) -> Wanted:
    """What the layer kept_scripts is asked, to put them on a host."""
    return Wanted(owner=owner_name, content=base64.b64encode(_archive()).decode("ascii"))


@functools.cache
def _archive() -> bytes:
    """All kept texts as a tar.gz."""
    packed = io.BytesIO()
    with tarfile.TarFile(fileobj=packed, mode="w") as archive:
        for kept_text in texts():
            entry = tarfile.TarInfo(kept_text.name)
            content = kept_text.text.encode()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)
