"""Tests of the simulated hosts themselves, and of what makes the tests quick: `make test-lab`."""
