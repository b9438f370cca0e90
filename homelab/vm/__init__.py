"""A VM's configuration and what is planned for it, without Pulumi and without a network."""
