"""The errors a user can cause, each with the exit code the command line ends with.

A message has one line and says what is wrong, where, and what to do about it.
"""


class FeatkitError(Exception):
    """Base of every error that is reported as one line instead of a traceback; by itself, something unexpected.

    reported: whether another process of the same command reports it; None: not known.
    """

    exit_code = 1
    reported: bool | None = None


class UsageError(FeatkitError):
    """The command or a configuration asks for something that does not exist."""

    exit_code = 2


class BadInputError(FeatkitError):
    """A file or folder is missing, broken, or not what it was taken for."""

    exit_code = 3


class EmptySceneError(BadInputError):
    """A scene with nothing to learn from: among others it is passed over."""


class EmptyResultError(FeatkitError):
    """The work ran, but there is no result: no model, no point, no pose."""

    exit_code = 4


class NotWritableError(FeatkitError):
    """The output cannot be written: no permission, no space, or locked by another process."""

    exit_code = 5


class WorkerDiedError(FeatkitError):
    """A worker process was ended from outside, most often for memory."""


class ProcessLostError(WorkerDiedError):
    """Of several processes with the same work another one ended, or is silent."""
