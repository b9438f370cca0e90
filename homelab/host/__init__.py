"""A Proxmox VE host: its settings, the gates, the plan, its resources and what is done for them.

The words of its kernel command line are chosen in `plan`, those about the IOMMU in homelab/cards/remapping.py.
"""
