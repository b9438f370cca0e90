"""The ways to a host: SSH, the agent that runs there, the Proxmox VE API. Without Pulumi."""
