"""Programs that ask schedulers and tell ingest: they run where the scheduler can be asked, and only call out.

None of them touches the database: what they know goes through `POST /v1/jobs/events` as anybody's would.
"""
