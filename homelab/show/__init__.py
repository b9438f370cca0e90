"""A tree of which guest has which card: host → IOMMU group → card → guest, with the changes marked.

`reading` makes a host's cards from a reading and from the settings, `cards` from a stack's outputs; `traits` has the
options that are shown of a host, a card and a guest; `tree` makes one tree of them all; `terminal` draws it; `result`
is the summary of an `up`. Pure, but for rich's console.
"""
