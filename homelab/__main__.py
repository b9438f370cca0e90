"""`python -m homelab`."""

import sys

from homelab.cli.command_line import main

sys.exit(main())
