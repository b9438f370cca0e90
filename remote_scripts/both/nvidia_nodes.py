"""What the layer nvidia_nodes answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """`driver`: the version that is loaded, empty for none; `changed`: whether a file was."""

    driver: str
    changed: bool
