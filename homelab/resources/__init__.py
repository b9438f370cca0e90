"""The resources that Pulumi keeps: what reads a host and finds drift, what acts, what is owned and given back."""
