"""``python -m collector`` is ``wattledger-agent``."""

from collector.cli import main

raise SystemExit(main())
