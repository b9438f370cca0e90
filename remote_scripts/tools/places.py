"""Where homelab's own things are on a host."""

HOME = "/var/lib/homelab"
#: Before the path of the agent, or of a program: without what a login has in the environment or in
#: site-packages, and without writing bytecode.
PYTHON = "/usr/bin/python3 -I -S -B -X utf8"
