"""What a new VM can be made of: the storages for its disk, the images and the CDs of its node."""

from __future__ import annotations

from dataclasses import dataclass

from homelab.errors import HomelabError
from homelab.remote.proxmox.files import Files
from homelab.settings.download import KnownImage
from homelab.settings.download import images as known_images

# Formats of a disk that can be imported; an .ova or .ovf is a whole VM.
_DISKS = (".qcow2", ".raw", ".vmdk", ".img")


@dataclass(frozen=True)
class Offered:
    """What a new VM can be made of. `disks`: storages for its disk; `images`: volumes with the content of a disk;
    `isos`: CDs; `into`: the storage for downloaded images, None: no storage accepts them.
    """

    disks: list[str]
    images: list[str]
    isos: list[str]
    into: str | None

    @property
    def downloadable(self) -> list[str]:
        """Names of known cloud images that can be downloaded, and aren't there yet."""
        files = {volume.rpartition("/")[2] for volume in self.images}
        return [name for name, image in cloud_images().items() if self.into is not None and image.file not in files]


def cloud_images() -> dict[str, KnownImage]:
    """The known images that become a VM's disk; the others are CDs for an installation."""
    return {name: image for name, image in known_images().items() if image.user}


def offered(files: Files) -> Offered:
    """What a new VM can be made of.

    :raises HomelabError: the node doesn't say, or no storage takes disks.
    """
    active = {str(row["storage"]): row["content"].split(",") for row in files.storages() if row.get("active")}
    disks = [name for name, content in active.items() if "images" in content]
    if not disks:
        raise HomelabError(
            wanted="a storage for the new VM's disk",
            found="none that is active and takes disks of VMs",
            why="the VM's system disk is made on it",
            next="add one in the web interface (Datacenter -> Storage, content: Disk image)",
        )

    def listed(kind: str) -> list[str]:
        return sorted(volume for name in active if kind in active[name] for volume in files.volumes(name, kind))

    images = [volume for volume in listed("import") if volume.lower().endswith(_DISKS)]
    takers = [name for name, content in active.items() if "import" in content]
    into = "local" if "local" in takers else next(iter(takers), None)
    return Offered(disks, images, listed("iso"), into)


def user_of(image: str) -> str:
    """The default user of a distribution's cloud image; empty: not known."""
    if image in cloud_images():
        return cloud_images()[image].user
    names = {
        "ubuntu": "ubuntu",
        "noble": "ubuntu",
        "resolute": "ubuntu",
        "jammy": "ubuntu",
        "server-cloudimg": "ubuntu",
        "debian": "debian",
        "rocky": "rocky",
    }
    names |= {"almalinux": "almalinux", "fedora": "fedora", "centos": "cloud-user"}
    return next((user for part, user in names.items() if part in image.lower()), "")
