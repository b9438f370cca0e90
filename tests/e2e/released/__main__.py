"""`python -m tests.e2e.released`."""

from tests.e2e.released import main

main()
