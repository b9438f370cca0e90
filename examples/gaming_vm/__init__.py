"""A Windows VM for games with a card of the homelab stack: a Pulumi project of its own."""
