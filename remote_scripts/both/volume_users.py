"""What the layer volume_users is asked, and what it answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`volume`: such as local:iso/virtio-win.iso."""

    volume: str


@dataclass(frozen=True)
class Answer:
    """`users`: the lines that name it, each after its file's path below /etc/pve/nodes and a colon."""

    users: str
