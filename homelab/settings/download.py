"""A file that Proxmox VE downloads onto a storage of a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from homelab import tables
from homelab.model import Model
from homelab.settings.types import Checksum, FileName, ImageName, Storage, WebAddress

# How a file's name ends -> its content type in Proxmox VE (PVE::Storage: ISO_EXT_RE_0, VZTMPL_EXT_RE_1,
# UPLOAD_IMPORT_EXT_RE_1). An .ova is a whole VM, and an .img as `iso` could be no disk.
_CONTENTS = {
    r".+\.iso": "iso",
    r".+\.tar\.(gz|xz|zst|bz2)": "vztmpl",
    r"[a-zA-Z0-9.+=_-]+\.(qcow2|raw|vmdk)": "import",
}


@dataclass(frozen=True)
class KnownImage:
    """An image in images.yaml. `url`: its address; `file`: its name; `sums`: the address of its maker's checksums, None
    without any; `user`: the user that cloud-init creates in it."""

    url: str
    file: str
    sums: str | None = None
    user: str = ""


@cache
def images() -> dict[str, KnownImage]:
    """The images of images.yaml, by the names that `image` takes."""
    by_name = tables.read(Path(__file__).with_name("images.yaml"))
    return {name: KnownImage(**{"file": image["url"].rpartition("/")[2], **image}) for name, image in by_name.items()}


class Download(Model):
    """A file that Proxmox VE downloads onto one of the host's storages, and that guests are made of: they name it by
    its name here. Exactly one of `image`, `url` and `template` says what it is."""

    image: ImageName | None = None
    """A known image: `ubuntu-24.04`, `ubuntu-22.04`, `ubuntu-26.04`, `debian-13` and `debian-12` are cloud images,
    `virtio-win` is the CD with Windows' drivers. It is compared with the checksum that its maker publishes;
    `virtio-win` has none."""
    url: WebAddress | None = None
    """The address of a file: an ISO image, or a disk image in the format qcow2, raw or vmdk."""
    checksum: Checksum | None = None
    """What the file must have, such as `sha256:` and 64 hexadecimal digits; only with `url` or `image`. Without it, a
    file from `url` isn't checked."""
    template: FileName | None = None
    """A template of containers, as `pveam available` lists it. Proxmox VE knows its address and its checksum."""
    storage: Storage = "local"
    """The storage that it comes to. It must be one of files (a directory, NFS, CIFS, CephFS), with the content that the
    file is: `iso`, `import` (disk images; from Proxmox VE 8.4 on) or `vztmpl`."""
    file: FileName | None = None
    """Its name there; only with `url`. By default the address's last part."""
    keep: bool = False
    """`true`: it stays when the stack is destroyed. A file that was there already always stays, and so does one that
    another guest uses."""

    @property
    def name(self) -> str:
        """The file's name on the storage."""
        default = images()[self.image].file if self.image else (self.url or "").rpartition("/")[2]
        return self.template or self.file or default

    @property
    def content(self) -> str:
        """Its content type in Proxmox VE: `iso`, `import` or `vztmpl`."""
        return next(kind for pattern, kind in _CONTENTS.items() if re.fullmatch(pattern, self.name))

    @property
    def volume(self) -> str:
        """The volume, as guests' configurations name it: `local:iso/virtio-win.iso`."""
        return f"{self.storage}:{self.content}/{self.name}"

    @property
    def address(self) -> str | None:
        """The address that it is downloaded from; None for a template, whose address Proxmox VE knows."""
        return images()[self.image].url if self.image else self.url

    @property
    def sums(self) -> str | None:
        """The address of its maker's checksums; None: it has none, or the settings have a checksum."""
        return images()[self.image].sums if self.image and self.checksum is None else None

    @field_validator("image")
    @classmethod
    def _image_name(cls, value: str | None) -> str | None:
        if value is not None and value not in images():
            raise ValueError(f"expected one of {', '.join(images())}; for any other set url")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.image, self.url, self.template)) != 1:
            raise ValueError("expected exactly one of image, url and template")
        if self.template is not None and self.checksum is not None:
            raise ValueError("checksum: Proxmox VE has a template's own; take it out")
        if self.file is not None and self.url is None:
            raise ValueError("file: only a file from url gets another name; take it out")
        if not any(re.fullmatch(pattern, self.name) for pattern in _CONTENTS):
            raise ValueError(
                f"{self.name}: expected a name that ends in .iso, .qcow2, .raw, .vmdk or .tar.zst (.gz, .xz, .bz2), by "
                "which Proxmox VE knows what it is; set `file` to such a name (a cloud image that ends in .img is "
                "mostly qcow2: `qemu-img info` tells)"
            )
        if self.template is not None and self.content != "vztmpl":
            raise ValueError(
                "template: expected a name as `pveam available` lists it, such as "
                "debian-12-standard_12.7-1_amd64.tar.zst"
            )
        return self
