"""A lock on an open file, of which the system lets go whatever becomes of the process."""

import fcntl
from typing import IO


def lock(file: IO, taken: Exception) -> None:
    """Locks the file until it is closed; where another process holds it, closes it and raises `taken`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise taken from None
