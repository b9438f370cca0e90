"""`python -m tests.e2e.released VERSION`."""

import sys

from tests.e2e.released import main

main(sys.argv[1])
