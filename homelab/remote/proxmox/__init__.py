"""The Proxmox VE API over proxmoxer, and what is read and changed through it."""
