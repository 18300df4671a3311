"""Reads and writes the store for the model; the only reader of tables outside ingest."""
