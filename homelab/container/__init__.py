"""A container's configuration and its plan; pure, and without Pulumi."""
