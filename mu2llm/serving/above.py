"""The tritonserver above a process: one that has lost its backend or model says for ever that it is ready, so
whoever sees that ends it, and what watches over servers starts another."""

import time

import psutil

WATCH_SECONDS = 1


def tritonserver() -> psutil.Process | None:
    """The server that started this process, by way of its backend; None where there is none."""
    return next((above for above in psutil.Process().parents() if above.name() == "tritonserver"), None)


def wait(server: psutil.Process) -> None:
    """Returns when the server has gone, also one that crashed and that nobody has asked for its status."""
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(WATCH_SECONDS)


def end(server: psutil.Process, *, seconds: float) -> None:
    """Ends the server, which gets so many seconds to do so itself; harmless when it has gone already."""
    try:
        server.terminate()
        server.wait(seconds)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        server.kill()
