"""Bytes made to hurt, for everything that decodes: ``make fuzz``, and a short run of it among the tests."""
