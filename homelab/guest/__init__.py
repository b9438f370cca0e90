"""A VM or container that the program makes, by Proxmox VE's own options."""
