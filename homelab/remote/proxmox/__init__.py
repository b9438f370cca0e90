"""The Proxmox VE API over proxmoxer, and reading and changing guests and files through it."""
