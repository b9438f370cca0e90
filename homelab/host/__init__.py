"""What is known and decided about one Proxmox VE host, without Pulumi: facts read over SSH, gates, the plan."""
