"""How long a call takes, for tests that promise linear time."""

import time


def seconds(function, *arguments):
    """Processor time, best of three, so that a busy machine does not fail the test."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function(*arguments)
        times.append(time.process_time() - start)
    return min(times)
