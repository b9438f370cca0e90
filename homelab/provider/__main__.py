"""How the engine starts the provider (provider/pulumi-resource-homelab)."""

import gc
import importlib.util
import sys

# Modules stay as long as the process: to look through them for garbage, again and again, took a quarter of its start.
gc.disable()

# The provider declares no resource: of Pulumi's SDK, which would be half of its start, it needs the protocol's messages
# alone. So the packages in which these lie stay empty, and a declaration has no base.
for package in ("pulumi", "pulumi.runtime", "pulumi.runtime.proto"):
    if spec := importlib.util.find_spec(package):
        sys.modules[package] = importlib.util.module_from_spec(spec)
vars(sys.modules["pulumi"])["CustomResource"] = object

from homelab.provider.serve import main

gc.freeze()
gc.enable()
main()
