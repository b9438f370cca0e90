"""Files on a storage of a host: downloads, snippets of cloud-init."""
