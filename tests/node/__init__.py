"""The roads of tests/e2e that can be run on Proxmox VE itself (tests/e2e/test_roads.py), on a throw-away node that somebody has: `make test-node`."""
