"""How often each task is practised."""

import random
from collections.abc import Iterator

from demo.sample import Sample, Task
from demo.tasks import drills, json_answers, recall, sums, talk, text, tool_calls

MIXTURE: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 2.0),
    (talk.about, 3.5),
    (talk.unknown, 2.0),
    (talk.capital, 4.0),
    (sums.sums, 16.0),
    (text.copying, 6.0),
    (text.reversing, 2.5),
    (text.sorting, 3.0),
    (text.spelling, 3.0),
    (text.counting, 3.5),
    (text.listing, 3.0),
    (recall.passkey, 6.0),
    (recall.long_passkey, 0.8),
    (recall.memory, 8.0),
    (recall.told_now, 2.0),
    (json_answers.json_answer, 12.0),
    (tool_calls.call, 18.0),
    (tool_calls.several_calls, 5.0),
    (tool_calls.no_tool, 4.0),
    (tool_calls.anything, 5.0),
    (drills.repeat, 2.0),
    (drills.look_up, 4.0),
)

# Finding a word again and saying what stood behind it: everything else rests on that, and it is
# learnt from dense examples in minutes where sparse ones take hours.
FIRST: tuple[tuple[Task, float], ...] = (
    (drills.repeat, 40.0),
    (drills.look_up, 40.0),
    (text.copying, 10.0),
    (text.spelling, 5.0),
    (text.reversing, 5.0),
)


# Later, more of what takes many examples and costs few tokens.
LAST: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 2.0),
    (talk.about, 4.0),
    (talk.unknown, 2.0),
    (talk.capital, 8.0),
    (sums.sums, 34.0),
    (text.copying, 4.0),
    (text.reversing, 4.0),
    (text.sorting, 4.0),
    (text.spelling, 5.0),
    (text.counting, 4.0),
    (text.listing, 2.0),
    (recall.passkey, 5.0),
    (recall.long_passkey, 0.6),
    (recall.memory, 12.0),
    (recall.told_now, 2.0),
    (json_answers.json_answer, 14.0),
    (tool_calls.call, 18.0),
    (tool_calls.several_calls, 4.0),
    (tool_calls.no_tool, 4.0),
    (tool_calls.anything, 3.0),
    (drills.look_up, 1.0),
)

STAGES = ((3, FIRST), (3, MIXTURE))  # so many shards of each; then LAST


def stage(shard: int) -> tuple[tuple[Task, float], ...]:
    for num_shards, mixture in STAGES:
        if shard < num_shards:
            return mixture
        shard -= num_shards
    return LAST


def training_samples(
    seed: int, mixture: tuple[tuple[Task, float], ...] = MIXTURE
) -> Iterator[Sample]:
    """Without end, and without what is held out. The same seed gives the same samples."""
    rng = random.Random(seed)
    tasks = [task for task, _ in mixture]
    weights = [weight for _, weight in mixture]
    while True:
        sample = rng.choices(tasks, weights)[0](rng)
        if not sample.is_held_out:
            yield sample
