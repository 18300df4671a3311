"""What may be posted to ingest: a module per kind of sender, each naming its endpoints in ``ENDPOINTS``.

An endpoint checks the bearer, has the body read by a receiver and kept by the store, and words the answer. It knows neither
encodings nor tables.
"""
