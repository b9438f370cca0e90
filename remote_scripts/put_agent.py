"""Puts the agent on a system: an archive with its sources, and their bytecode by this system's own Python.

It is sent as text, with a last line that calls `put`. A run that is cut short leaves the agent that was there before.
Python's own bytecode folders aren't safe from a power cut: the kernel may write a file's name before its bytes, so that
a broken file, or one of other sources, stays and fails at every start. This archive is flushed, and compared before it
is used.
"""

import base64
import hashlib
import importlib.util
import io
import json
import marshal
import os
import struct
import sys
import zipfile

OLDEST = (3, 10)
# A moment that zip can tell, for archives that are the same each time.
_WHEN = (1980, 1, 1, 0, 0, 0)


def refuse(wanted: str, found: str, why: str, next: str) -> None:
    """Ends with a message for a person."""
    print(f"wanted: {wanted}\nfound:  {found}\nwhy:    {why}\nnext:   {next}")
    sys.exit(1)


def compiled(archive: bytes) -> bytes:
    """The archive with the bytecode of its modules beside their sources, and its sum after its comment."""
    out = io.BytesIO(archive)
    with zipfile.ZipFile(out, "a") as whole:
        for name in whole.namelist():
            source = whole.read(name)
            if name.endswith(".py"):
                code = compile(source, name, "exec", dont_inherit=True, optimize=0)
                # PEP 552, a hash that isn't checked: the archive's sum says that both belong together.
                header = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + importlib.util.source_hash(source)
                whole.writestr(zipfile.ZipInfo(name + "c", _WHEN), header + marshal.dumps(code))
        whole.comment += b"0" * 64
    content = out.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


def put(place: str, archive: str) -> None:
    """Puts it there, on the disk when this returns, and answers `{"agent": ITS SUM}`.

    :param place: the file, without HOMELAB_ROOT.
    :param archive: of the sources, in base64.
    """
    if sys.version_info[:2] < OLDEST:
        refuse(
            f"Python {OLDEST[0]}.{OLDEST[1]} or later at {sys.executable}",
            f"Python {sys.version.split()[0]}",
            "this program's part on this system is written for it; nothing was changed",
            "upgrade this system: Debian 12 and Proxmox VE 8 have Python 3.11, Ubuntu 22.04 has 3.10",
        )
    os.umask(0o022)
    path = os.environ.get("HOMELAB_ROOT", "") + place
    content = compiled(base64.b64decode(archive))
    folder, name = os.path.split(path)
    temporary = f"{folder}/.{name}.new"  # by no name that another run takes for a leftover
    try:
        above = [folder]  # an earlier run may have made it and not flushed its name
        while len(above) == 1 or not os.path.isdir(above[-1]):
            above.append(os.path.dirname(above[-1]))
        os.makedirs(folder, 0o755, exist_ok=True)
        with open(temporary, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for made in above:
            descriptor = os.open(made, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        refuse(
            f"this program's part on this system, {place}",
            f"it can't be written: {error.strerror}",
            "every later step is done by it; nothing else was changed",
            "make room below /var, then run `pulumi up` again",
        )
    print(json.dumps({"agent": content[-64:].decode()}))
