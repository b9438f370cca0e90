"""From a host's reading and a person's answers to settings, rights and commands (`homelab init`). Nothing is asked or done here."""
