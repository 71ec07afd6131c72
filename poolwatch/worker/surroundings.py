"""Sets a job's environment, directory and context variables, and puts things back afterwards.

The guarantee: the next job finds the worker as this one did, as far as the settings go, however
this one ends. What a job changes by itself (other variables of the environment, the directory when
it was given none) is its own affair and stays.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import environ  # the real one, should a job put another mapping in its place
from typing import Any, TypeVar

from poolwatch.transport import settings

T = TypeVar("T")


def run_in(
    section: bytes, variables: Sequence[contextvars.ContextVar[Any]], call: Callable[[], T]
) -> T:
    """Call something in the surroundings that a job's section describes.

    Args:
        section: see ``transport.settings``.
        variables: the pool's context variables, those that travel.
        call: what to call; it must not raise.

    Raises:
        JobDecodingError: the value of a context variable does not unpickle.
        OSError: the directory cannot be entered.
        ValueError: the system does not allow a variable of the environment.
    """
    env, cwd, values = settings.decode(section)
    with _environment(env), _directory(cwd):
        if not variables:
            return call()
        decoded = {
            variables[index]: settings.decode_value(variables[index], value)
            for index, value in values.items()
        }
        return _context(variables, decoded).run(call)


def _context(
    variables: Sequence[contextvars.ContextVar[Any]],
    values: dict[contextvars.ContextVar[Any], Any],
) -> contextvars.Context:
    """Return a context of the job's own: the worker's, with the submitter's values.

    A listed variable that the submitter has not set is unset, also where the worker was forked from
    a context in which it was set; so it cannot be a copy.
    """
    context = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if variable not in variables:
            context.run(variable.set, value)
    for variable, value in values.items():
        context.run(variable.set, value)
    return context


@contextmanager
def _environment(env: dict[str, str]) -> Iterator[None]:
    before = {name: environ.get(name) for name in env}
    try:
        environ.update(env)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


@contextmanager
def _directory(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    # A descriptor finds the directory again when it has been moved, or removed, meanwhile.
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        try:
            os.chdir(path)
        except OSError as error:
            text = f"the job's cwd cannot be entered: {error.strerror}"
            raise type(error)(error.errno, text, path) from None
        try:
            yield
        finally:
            _go_back(before)
    finally:
        _close(before)


def _go_back(before: int) -> None:
    try:
        os.fchdir(before)
    except OSError:
        # The job has closed the descriptor, or may not enter the directory any more. The next one
        # must not run in this one's directory.
        os.chdir("/")


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # the job has closed it already
