"""A run is heard of in time, whatever its steps take."""

from train.pace import LoopLength, TimeLeft


def lengths(seconds_per_step, most=100, loops=12, epoch=10**6, **options):
    """The loops of a run whose steps take so many seconds, by step."""
    length, step, found = LoopLength(most, **options), 0, []
    for _ in range(loops):
        found.append(length.steps)
        steps = min(length.steps, epoch - step % epoch)
        length.took(sum(seconds_per_step(k) for k in range(step, step + steps)), steps)
        step += steps
    return found


def test_loops_grow_from_one_step_to_what_the_recipe_says():
    assert lengths(lambda step: 0.01, loops=9) == [1, 2, 4, 8, 16, 32, 64, 100, 100]
    assert lengths(lambda step: 0.01, most=1, loops=3) == [1, 1, 1]


def test_slow_steps_make_short_loops():
    """Of 3 s, four steps take 12: neither twice as many nor half. Of 60, each is told."""
    assert lengths(lambda step: 3.0, loops=5) == [1, 2, 4, 4, 4]
    assert lengths(lambda step: 60.0, loops=3) == [1, 1, 1]
    # The first step is traced for a minute; from the 30th on, all are slow.
    found = lengths(lambda step: 60.0 if step == 0 else 0.1 if step < 30 else 3.0)
    assert found == [1, 1, 2, 4, 8, 16, 32, 16, 8, 4, 4, 4]


def test_a_loop_that_an_epochs_end_cuts_short_is_no_reason_for_longer_ones():
    found = lengths(lambda step: 4.9, epoch=13, loops=20)
    assert max(found) == 4
    assert lengths(lambda step: 9.9, epoch=5, loops=12)[-4:] == [2, 2, 2, 2]


def test_workers_have_loops_of_one_length():
    """Another worker is slow: this one, which is not, has its short loops."""
    assert lengths(lambda step: 0.01, loops=3, any_worker=lambda flag: True) == [1, 1, 1]


def test_time_left_leaves_out_the_first_part():
    """Traced for a minute, then two parts in 6 s: 97 more take 291."""
    left = TimeLeft(100)
    assert left(1, 60.0) == ""
    assert left(3, 66.0) == ", 0:04:51 left"
    assert left(100, 360.0) == ", 0:00:00 left"
