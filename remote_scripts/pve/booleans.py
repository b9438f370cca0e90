"""How Proxmox VE writes booleans (PVE::JSONSchema::parse_boolean), whatever their case."""

_TRUE = frozenset(("1", "on", "yes", "true"))


def is_true(value: str) -> bool:
    """Whether an option's value is one that says yes; empty: there is none."""
    return value.lower() in _TRUE
