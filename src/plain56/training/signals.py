"""Requests to stop, heard between two calls to the devices."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def postponed_interrupts():
    """Holds back SIGINT and SIGTERM while inside, so that the work in hand can be saved; the second one interrupts at once.

    Yields a list that gets the name of the first one. If nobody has acted on it, it interrupts at the end, by KeyboardInterrupt.
    Only a program's main thread can hold signals back.
    """
    received = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as it is for a job in the background of a shell
                before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt(f"stopped by {received[0]}")
