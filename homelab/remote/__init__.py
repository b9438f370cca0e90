"""The ways to a host: SSH, the scripts that run there, the Proxmox VE API. Without Pulumi."""
