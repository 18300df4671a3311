"""The pure model: no clock, environment, SQL, network or logging."""
