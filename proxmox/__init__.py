"""What is done through the Proxmox VE API: dynamic resources over proxmoxer, and what they share."""
