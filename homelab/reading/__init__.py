"""What is read of a host before it is judged: itself, the systems on it, what apt and Proxmox VE say there."""
