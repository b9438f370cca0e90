"""What the layer free_card is asked."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    stack: str
    """PROJECT/STACK."""
    card: tuple[str, ...]
    """Its mapping and its address."""
    keeps: dict[str, tuple[str, ...]]
    """The mappings that each VM of the settings is to have, by its id."""
    staying: tuple[str, ...] = ()
    """VMs of the settings, by their ids, that don't lose it with its mapping: of these their owner's own lines are none
    of this program's.
    """
