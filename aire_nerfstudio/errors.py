"""Bad input: one clear line to the person at the terminal, an ordinary exception to the caller in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# Exit status of what a person interrupted, as shells have it.
INTERRUPTED = 130

P = ParamSpec("P")
R = TypeVar("R")


class InputError(ValueError):
    """Input that cannot be used; the message names the value, the rule and the fix, in one line.

    What a terminal would obey, or a line break from a stranger's file, is shown as a question mark.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputExit(InputError, SystemExit):
    """An :class:`InputError` on its way through nerfstudio's commands, which print a traceback for any other.

    Nobody need catch it: the process then ends with ``error:`` and the message as its last line, and status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"error: {self}"


def printable(text: object) -> str:
    """Text for one line of a terminal, which obeys some characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 160 characters; its type's name where it has none."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def exit_on_bad_input(function: Callable[P, R]) -> Callable[P, R]:
    """Turn :class:`InputError` into an :class:`InputExit`, for the functions that commands call."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except InputExit:
            raise
        except InputError as error:
            raise InputExit(str(error)) from error

    return wrapper
