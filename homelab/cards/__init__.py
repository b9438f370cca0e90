"""A card of a host: what it is, what is known of it, whether it can be given away, and its PCI mapping.

Also the IOMMU, without which none can be: `remapping` chooses its words of the kernel command line.
"""
