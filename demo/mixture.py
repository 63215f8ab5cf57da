"""How often each task is practised."""

import random
from collections.abc import Iterator

from demo.sample import Sample, Task
from demo.tasks import drills, json_answers, recall, sums, talk, text, tool_calls

MIXTURE: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 2.0),
    (talk.about, 4.0),
    (talk.unknown, 2.0),
    (talk.capital, 4.0),
    (drills.capitals, 2.0),
    (sums.sums, 21.0),
    (sums.facts, 4.0),
    (text.copying, 7.0),
    (text.reversing, 2.5),
    (text.sorting, 2.5),
    (text.spelling, 3.0),
    (drills.spellings, 3.0),
    (text.counting, 2.5),
    (text.listing, 2.0),
    (recall.passkey, 2.6),
    (recall.long_passkey, 0.3),
    (recall.memory, 4.0),
    (recall.interview, 2.2),
    (recall.told_now, 2.0),
    (json_answers.json_answer, 3.4),
    (json_answers.several_answers, 2.9),
    (tool_calls.call, 3.7),
    (tool_calls.calls_in_turns, 2.8),
    (tool_calls.several_calls, 1.5),
    (tool_calls.no_tool, 1.8),
    (tool_calls.anything, 1.4),
    (drills.repeat, 2.0),
    (drills.look_up, 1.6),
)

# After that: mostly choosing among several tools, the weakest task, and a little of everything.
LAST: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 1.5),
    (talk.about, 3.0),
    (talk.unknown, 1.5),
    (talk.capital, 2.5),
    (drills.capitals, 1.5),
    (sums.sums, 11.0),
    (sums.facts, 2.0),
    (text.copying, 4.0),
    (text.reversing, 1.0),
    (text.sorting, 1.5),
    (text.spelling, 1.0),
    (drills.spellings, 1.0),
    (text.counting, 1.5),
    (text.listing, 1.5),
    (recall.passkey, 1.6),
    (recall.long_passkey, 0.3),
    (recall.memory, 3.5),
    (recall.interview, 1.8),
    (recall.told_now, 1.5),
    (json_answers.json_answer, 2.8),
    (json_answers.several_answers, 2.0),
    (tool_calls.call, 8.5),
    (tool_calls.calls_in_turns, 2.0),
    (tool_calls.choices, 5.0),
    (tool_calls.choose, 17.0),
    (tool_calls.which_tools, 1.5),
    (tool_calls.several_calls, 2.0),
    (tool_calls.no_tool, 2.0),
    (tool_calls.anything, 4.0),
    (drills.repeat, 4.0),
    (drills.look_up, 3.0),
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

NUM_FIRST_SHARDS = 3
FIRST_OF_LAST = 1000  # the shards of a training that goes on from another one


def stage(shard: int) -> tuple[tuple[Task, float], ...]:
    if shard >= FIRST_OF_LAST:
        return LAST
    return FIRST if shard < NUM_FIRST_SHARDS else MIXTURE


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
