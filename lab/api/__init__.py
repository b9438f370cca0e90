"""The Proxmox VE API of a lab host, asked inside the host, on the same state as its SSH side.

How it is laid out, after a request's way through it:

- `server`: pvedaemon (HTTP), and the daemon's side of tasks;
- `responses`: who asks (`auth`), what for (`reference`, read from reference.toml) and whether its parameters
  are right (`checks`, `formats`), then the operation; errors (`errors`) become status lines;
- the operations, on files below the host's /etc/pve, /run and /var/log/pve, as a real node has them: `cluster`,
  `node`, `mapping`, `storage`, `qemu`, `qemu_power`, `lxc`, `snapshots`, `agent`, `tasks`, `quorum`; what the guests' two kinds share is in
  `guests` and `guest_config`, handing a GPU over in `passthrough`;
- what runs inside a VM: `guest_system` for its agent's commands, `direct_boot` and `guest_kernel` where its `args` name a kernel;
- `commands`: qm, pct and pvesh are the same operations, asked for by root@pam at a shell.

Everything but `server` uses the standard library alone, so that the commands start fast. lab/README.md says
what is simulated; tests/simulator/api_not_held.txt how far it is held to a real node.
"""
