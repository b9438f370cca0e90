"""Where the Pulumi engine comes from; see README.md in this folder."""
