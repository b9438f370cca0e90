"""What is read of a host, as types: itself, its devices, its guests, what its kernel says. Without Pulumi."""
