"""The inside of a simulated host: kernel model, boot loaders, initramfs, and the commands a Proxmox host has.

Only the standard library is used here, and imports inside the package are relative: the commands run as
`python -I -S` with this package importable by the name `host`, which keeps each of them below a few
hundredths of a second, while the rest of the lab imports the very same code as `lab.host`.

A test asks hundreds of these commands something, and each is a process of its own: what it doesn't need, it doesn't
import. So a module has at its top what all of its commands need; sockets, hashing, archives and other processes are
imported by the function that uses them; records are named tuples, not dataclasses (which bring inspect, ast and dis).
Where a command server runs (command_server.py: in every lab with a daemon, and in tests), a command is done by a fork of that.
"""
