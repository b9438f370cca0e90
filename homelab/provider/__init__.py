"""homelab's provider: what is done with the resources, in a process of its own that the engine starts (provider/).

`serve` answers the engine, `registry` finds the work for a resource: in work.py beside its declaration.
"""
