"""How Proxmox VE writes booleans (PVE::JSONSchema::parse_boolean), whatever their case."""

TRUE = frozenset(("1", "on", "yes", "true"))
