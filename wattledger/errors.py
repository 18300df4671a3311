"""Errors of the command line: what the person at the terminal can do something about."""


class WattledgerError(Exception):
    """Base of what the command line raises on purpose."""


class NotReadyError(WattledgerError):
    """Something that must be there first is not; the message says what to run."""
