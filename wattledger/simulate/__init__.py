"""A deterministic simulated fleet that speaks the real wire; everything it makes is marked simulated."""
