"""A push that is killed, in a process of its own."""

import os
import signal

from omniopd.store.layout import RunDir
from omniopd.store.mirror import writer
from omniopd.store.mirror.writer import Mirror


def push_and_die(calls, path, url, environment):
    """In a process of its own: a push that is killed before its n-th call of the place."""
    os.environ.update(environment)
    mirror = Mirror(RunDir(path), url)
    place, left = mirror._place, calls

    def counted(function):
        def call(*args):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    for name in ("create", "put", "has", "get", "names", "delete"):
        setattr(place, name, counted(getattr(place, name)))
    writer._AT_ONCE = 1
    mirror.push()
