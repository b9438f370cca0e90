"""How the engine starts the provider (provider/pulumi-resource-homelab)."""

import gc

# Modules stay as long as the process: to look through them for garbage, again and again, took a quarter of its start.
gc.disable()

from homelab.provider.serve import main

gc.freeze()
gc.enable()
main()
