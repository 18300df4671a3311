"""Against real processes, killed for real."""
