"""What the layer stack_folder is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`owner`: the folder's name, of a project and a stack."""

    owner: str
