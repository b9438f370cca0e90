"""The same host job by this program, by pyinfra and by Ansible, side by side: `make bench` (tests/bench/README.md)."""
