"""What is judged of a host and all on it, once: one tree, which preview, refresh, `up`, doctor, show and init walk."""
