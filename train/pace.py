"""How long a loop of steps is, and how much time a run still takes."""

import datetime

HEARD_SECONDS = 20  # a run is heard of at least so often, if its steps are shorter than that


class LoopLength:
    """Steps of the next loop: twice or half of those before, by the time that these took.

    Nothing is heard of a run during a loop, and it does not stop either. A loop of a hundred steps
    may take a second, or ten minutes.

    Args:
        most: steps of a loop at most.
        any_worker: of `train.strategies.agreement`: all workers must have loops of one length.

    Attributes:
        steps: of the next loop; the first has one.
    """

    def __init__(self, most, any_worker=lambda flag: flag):
        self.most = most
        self.steps = 1
        self._any_worker = any_worker

    def took(self, seconds, steps):
        """Takes the time of a loop, which an epoch's end may have cut to fewer steps."""
        if not self._any_worker(seconds > HEARD_SECONDS / 2):
            if steps >= self.steps:
                self.steps = min(2 * self.steps, self.most)
        elif self._any_worker(seconds > HEARD_SECONDS):
            self.steps = max(self.steps // 2, 1)


class TimeLeft:
    """Time to the end of something, by the time that its parts took from the second call on.

    Args:
        total: parts of the whole.
    """

    def __init__(self, total):
        self.total = total
        self._first = None

    def __call__(self, done, now):
        """Text of hours, minutes and seconds, such as `", 0:12:05 left"`; empty if not known.

        Args:
            done: parts done so far.
            now: seconds of a clock.
        """
        if self._first is None:  # the first part takes longer: functions are traced in it
            self._first = (done, now)
        parts, seconds = done - self._first[0], now - self._first[1]
        if parts <= 0:
            return ""
        left = round(seconds / parts * (self.total - done))
        return f", {datetime.timedelta(seconds=left)} left"
