"""No I/O beyond a temporary folder; all of it in seconds."""
