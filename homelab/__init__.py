"""Takes a Proxmox VE host from stock to an NVIDIA GPU in use, and keeps it there.

Imports go one way (docs/adr/README.md, 16; `make lint` holds them to it): cli and components → resources → remote →
what is pure.
"""

__version__ = "2.0.0.dev0"
