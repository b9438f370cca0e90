"""How the engine starts the provider (provider/pulumi-resource-homelab)."""

from homelab.provider.serve import main

main()
