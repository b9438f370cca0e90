"""A picture of who has which card: host → IOMMU group → card → guest; as it is, as the settings want it, or both with what changes.

`reading` has the cards of a host from a reading and from the settings, `cards` from a stack's outputs; `tree` makes one tree of them; `terminal`
and `mermaid` draw it; `result` says in lines what an `up` has come to. Pure, but for rich's console.
"""
