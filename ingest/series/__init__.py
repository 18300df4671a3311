"""Named series of other people's agents (Prometheus, OpenTelemetry) as rows of our streams."""
