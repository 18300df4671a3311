"""What can go wrong in the agent, one class for each thing a caller does about it.

AgentError
├── ConfigError            refuse to start: the message lists every fault
├── TraceError             refuse to start: the file to replay is not a trace
├── SpoolError             the spool cannot be used: report it, go on measuring, try again
│   └── SpoolFullError     bodies of others have their share of the spool: have them come again later
├── NoAnswerError          who was asked gave no usable answer: count it, ask again later
├── JournalError           no order is carried out or undone now: report it, try again
└── LibraryReplacedError   leave with exit code 75, so that the service manager starts a process with the new driver library
"""

from __future__ import annotations


class AgentError(Exception):
    """Any error the agent raises on purpose."""


class ConfigError(AgentError):
    """The settings are impossible."""


class TraceError(AgentError):
    """A file given to replay holds no usable trace."""


class SpoolError(AgentError):
    """The spool can neither keep nor give out batches now."""


class SpoolFullError(SpoolError):
    """What others gave to be forwarded may take no more room."""


class NoAnswerError(AgentError):
    """Whoever was asked over HTTP gave nothing that can be used; ``kind`` is a word for counting."""

    def __init__(self, message: str, *, kind: str = "unusable") -> None:
        """Keep both; the message is for people."""
        super().__init__(message)
        self.kind = kind


class JournalError(AgentError):
    """The journal of orders can neither be read nor written now."""


class LibraryReplacedError(AgentError):
    """The driver was upgraded under this process: its NVML library can never talk to the driver again."""
