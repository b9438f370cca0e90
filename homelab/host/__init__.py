"""A Proxmox VE host: its settings, the gates, the plan, its resources and what is done for them."""
