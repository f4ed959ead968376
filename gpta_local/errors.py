"""The errors that a user can meet. Knows nothing of the rest of the package.

    GptaError                 everything we raise on purpose; `exit_code` is the command's status
    ├── InputError       (2)  what the user gave cannot be used
    │   ├── ConfigError       a key or value of the configuration
    │   ├── DataError         a file, column, row or label of the data
    │   └── ModelError        a model folder, or what is asked of it
    ├── AssistantError   (2)  the assistant's endpoint or record does not give what was asked
    │   ├── EndpointError     refused, timed out, not authorised, no such model, not a chat API
    │   ├── AdapterRefused    it does not take an adapter; it goes on answering without
    │   └── ReplayExhausted   the recorded completions have run out
    ├── PrivacyError     (2)  private words or personal data would leave
    ├── OutputError      (2)  the run directory or another file cannot be made or written
    ├── StorageError     (1)  the disk is full, or fails, while a run goes on; the run can be resumed
    ├── TrainingError    (1)  a run that started well cannot go on (a loss that is not a number)
    └── ServerError      (1)  a server that we started does not get ready, or ends by itself

A completion that cannot be read is no error of this tree: `prompts.UnusableReply` says why, and
the caller counts it.
"""

from __future__ import annotations

LOWER_RATES = "Lower the learning rates of `training`, or set training.precision to fp32"
"""How to mend a training that diverged."""


class GptaError(Exception):
    """An error with one clear message: what is wrong, where, and how to mend it.

    Args:
        what: what is wrong, without a final full stop.
        where: file, line, column or configuration key.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text}. {self.fix}" if self.fix else text
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)  # a name may hold terminal codes


def first_line(exc: BaseException) -> str:
    """The beginning of what a library's error says, or its kind if that is nothing."""
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]


class InputError(GptaError):
    exit_code = 2


class ConfigError(InputError):
    pass


class DataError(InputError):
    pass


class ModelError(InputError):
    pass


class AssistantError(GptaError):
    exit_code = 2


class EndpointError(AssistantError):
    pass


class AdapterRefused(AssistantError):
    pass


class ReplayExhausted(AssistantError):
    pass


class PrivacyError(GptaError):
    exit_code = 2


class OutputError(GptaError):
    exit_code = 2


class StorageError(GptaError):
    exit_code = 1


class TrainingError(GptaError):
    exit_code = 1


class ServerError(GptaError):
    exit_code = 1
