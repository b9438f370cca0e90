"""What `homelab up --all` decides: which stacks there are, which of them may run side by side, and what each of them has come to. No processes."""
