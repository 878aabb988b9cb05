"""Every error that eventflow raises, in one tree.

    BaseException
    └── Cancelled                      a sync workflow is to end; as asyncio.CancelledError in an async one
    Exception
    └── EventflowError
        ├── UsageError                 the programmer's mistake; never retried
        │   ├── NotRunningError
        │   └── BlockingCallError
        ├── SettingsError              a setting that is wrong, by its name
        ├── SchemaError                a database that does not fit this code
        ├── CodecError                 a value that cannot be encoded or decoded
        │   └── UnreadableError        a stored value whose key is gone, or that is damaged
        ├── DeterminismError           a replay met other code than was recorded
        ├── HistoryTooLongError        a workflow has recorded more than it may
        ├── UnavailableError           Postgres or Kafka does not answer
        ├── LifespanError              a lifespan raised while it was entered
        ├── WorkflowNotFoundError
        ├── WorkflowExistsError
        ├── WorkflowStateError         an operation that the workflow's state does not allow
        ├── WorkflowError              a recorded failure that cannot be rebuilt here
        ├── WorkflowParkedError        the result of a parked workflow was asked for
        ├── WorkflowCancelledError     the result of a cancelled workflow was asked for
        ├── WorkflowTimeoutError       a result did not come in the time given
        └── FencedError                this executor was presumed dead; a peer has its work

The others than UsageError are events of the world. A test holds this drawing against the classes.
"""


class EventflowError(Exception):
    """The root of all errors that eventflow raises."""


class UsageError(EventflowError):
    """The program uses eventflow in a way that cannot work; the message says what to do instead."""


class NotRunningError(UsageError):
    """A durable call outside `running()`."""


class BlockingCallError(UsageError):
    """A blocking call on a thread whose event loop it would stop."""


class SettingsError(EventflowError):
    """A setting that is missing or wrong; the message names it."""


class SchemaError(EventflowError):
    """The database's schema does not fit this version of eventflow, or the role lacks rights on it."""


class CodecError(EventflowError):
    """A value that cannot be encoded or decoded by its annotation, or that is larger than `EVENTFLOW_MAX_PAYLOAD`."""


class UnreadableError(CodecError):
    """A stored value that this process's payload codec cannot decode; the message names the key under which it stands.

    A workflow that needs such a value is parked with this as its reason, and can be resumed where the key is.
    """


class DeterminismError(EventflowError):
    """A replay met another operation than the one recorded at this position."""


class HistoryTooLongError(EventflowError):
    """A workflow has recorded as many operations as it may (`EVENTFLOW_MAX_CHECKPOINTS`), and is parked."""


class UnavailableError(EventflowError):
    """Postgres or Kafka cannot be reached; the message says which, and where it was sought."""


class LifespanError(EventflowError):
    """A `@lifespan` raised while it was entered; nothing was started. Its exception is the cause."""


class WorkflowNotFoundError(EventflowError):
    """No workflow has this id."""


class WorkflowExistsError(EventflowError):
    """The workflow id is taken by another workflow, or by the same one with other arguments."""


class WorkflowStateError(EventflowError):
    """The workflow's state does not allow what was asked for; the message names it."""


class WorkflowError(EventflowError):
    """A workflow or step failed with an exception that cannot be rebuilt in this process.

    Attributes:
        type: the original exception's qualified class name.
        message: its text.
        traceback: its traceback as text, as recorded where it happened.

    """

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback


class WorkflowParkedError(EventflowError):
    """The workflow is held for a person; the message has the reason."""


class Cancelled(BaseException):
    """Raised in a sync workflow that is to end, as `asyncio.CancelledError` is in an async one."""


class WorkflowCancelledError(EventflowError):
    """The result of a cancelled workflow was asked for."""


class WorkflowTimeoutError(EventflowError):
    """A result did not come within the time given."""


class FencedError(EventflowError):
    """This executor was presumed dead and a peer took its work over; nothing it held can commit."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says: the rest of libpq's and Pydantic's is advice that buries it in a log."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def for_future(error: BaseException) -> BaseException:
    """The same as a future takes it: Python 3.11 lets none hold a StopIteration, and whoever awaits it would wait for ever."""
    if not isinstance(error, StopIteration):
        return error
    instead = RuntimeError("a function raised StopIteration")
    instead.__cause__ = error
    return instead
