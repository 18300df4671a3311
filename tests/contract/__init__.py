"""Against real peers, formats and the packaging."""
