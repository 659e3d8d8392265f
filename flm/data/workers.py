"""Processes that read ahead for a data loader."""

import signal


def ignore_stop_signals(worker: int = 0) -> None:
    """For a worker's start: a scheduler and Ctrl-C signal every process of a job, and a run that then saves itself still reads.

    Workers end with the process that reads from them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
