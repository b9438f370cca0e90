"""The facts of one Proxmox VE host, which are read over SSH, the gates and the plan. Without Pulumi."""
