"""Programs that build on the homelab stack."""
