"""What all resources that Pulumi keeps have in common. Those of a subject are in its folder (resource.py)."""
