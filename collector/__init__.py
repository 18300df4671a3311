"""The node agent: measures, keeps what it measured until ingest has it, and sends it. Imports nothing heavy."""
