"""The one error that a user can cause and mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: the message is one line that names the file or field and the remedy."""


@contextmanager
def reported() -> Iterator[None]:
    """Ends the program with the message of an `InputError` and exit code 2, no traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
