"""homelab's provider: what is done with the resources, in a process of its own that the engine starts (provider/).

`serve` answers the engine, `registry` finds the work for a resource, one module each has it.
"""
