"""A file that Proxmox VE downloads onto a storage of a host."""

from __future__ import annotations

import re

from homelab.fields.model import Model
from homelab.fields.types import Checksum, Storage, WebAddress

# How a file's name ends -> its content type in Proxmox VE (PVE::Storage: ISO_EXT_RE_0, VZTMPL_EXT_RE_1,
# UPLOAD_IMPORT_EXT_RE_1). An .ova is a whole VM, and an .img as `iso` could be no disk.
_CONTENTS = {r"\.iso": "iso", r"\.tar\.[a-z0-9]+": "vztmpl", r"\.[a-z0-9]+": "import"}


class Download(Model):
    """A file that Proxmox VE downloads onto one of the host's storages, for guests to be made of. `pulumi destroy`
    removes it, unless it was there before or another guest uses it."""

    url: WebAddress
    """The file's address."""
    checksum: Checksum | None = None
    """What the file must have, such as `sha256:` and 64 hexadecimal digits, as its maker publishes them. Without it,
    the file isn't checked."""
    storage: Storage = "local"
    """The storage for it. It must be one for files (a directory, NFS, CIFS, CephFS) that takes this kind of content:
    `iso`, `import` (disk images; from Proxmox VE 8.4 on) or `vztmpl`."""

    def volume(self, name: str) -> str:
        """The volume, as guests' options name it: `local:iso/virtio-win.iso`.

        :param name: the file's.
        """
        content = next(kind for pattern, kind in _CONTENTS.items() if re.search(f"{pattern}$", name))
        return f"{self.storage}:{content}/{name}"
