"""Times functions against each other, so that what else runs on the machine hits all alike."""

import math
import time

WARMUP = 2  # turns


def in_turns(steps, repeats, seconds=math.inf):
    """Times functions in alternating turns, after `WARMUP` turns that do not count.

    In a turn each function runs once; the order is rotated from turn to turn, so that no function
    always follows the same one.

    Args:
        steps: dict of name to function without arguments, which returns when its work is done.
        repeats: dict of name to number of timed turns; a function sits out the turns after these.
        seconds: after which no further turn begins; one is timed in any case.

    Returns:
        Dict of name to list of seconds, in the order of the turns.
    """
    names = list(steps)
    times = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(WARMUP + max(repeats.values())):
        if turn > WARMUP and time.perf_counter() - begin > seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if turn >= WARMUP + repeats[name]:
                continue
            start = time.perf_counter()
            steps[name]()
            if turn >= WARMUP:
                times[name].append(time.perf_counter() - start)
    return times
