"""What Pulumi models: one file per component."""
