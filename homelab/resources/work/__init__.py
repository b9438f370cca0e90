"""What is done for resources, in the provider's process: what all of it has in common.

A resource's own is in work.py, beside its declaration in resource.py. `base` also says what a refresh and a `destroy`
tell of a host that doesn't answer.
"""
