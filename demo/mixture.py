"""How often each task is practised."""

import random
from collections.abc import Iterator

from demo.sample import Sample, Task
from demo.tasks import drills, json_answers, recall, sums, talk, text, tool_calls

MIXTURE: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 1.5),
    (talk.about, 3.0),
    (talk.unknown, 1.5),
    (talk.capital, 3.0),
    (drills.capitals, 2.0),
    (sums.sums, 18.0),
    (sums.facts, 3.0),
    (text.copying, 5.0),
    (text.reversing, 1.5),
    (text.sorting, 2.0),
    (text.spelling, 1.0),
    (drills.spellings, 1.5),
    (text.counting, 2.0),
    (text.listing, 1.5),
    (recall.passkey, 2.2),
    (recall.long_passkey, 0.3),
    (recall.memory, 4.0),
    (recall.interview, 2.2),
    (recall.told_now, 2.0),
    (json_answers.json_answer, 3.2),
    (json_answers.several_answers, 2.5),
    (tool_calls.call, 7.0),
    (tool_calls.calls_in_turns, 2.5),
    (tool_calls.choices, 3.0),
    (tool_calls.choose, 9.0),
    (tool_calls.several_calls, 2.0),
    (tool_calls.no_tool, 2.0),
    (tool_calls.anything, 3.0),
    (drills.repeat, 3.0),
    (drills.look_up, 2.0),
)

# After that: mostly sums, which take the most examples, and a little of everything.
LAST: tuple[tuple[Task, float], ...] = (
    (talk.greeting, 1.0),
    (talk.about, 2.0),
    (talk.unknown, 1.0),
    (talk.capital, 2.0),
    (drills.capitals, 1.5),
    (sums.sums, 60.0),
    (sums.facts, 20.0),
    (text.copying, 4.0),
    (text.reversing, 0.5),
    (text.sorting, 1.0),
    (text.spelling, 0.5),
    (drills.spellings, 0.5),
    (text.counting, 1.0),
    (text.listing, 0.5),
    (recall.passkey, 1.2),
    (recall.long_passkey, 0.2),
    (recall.memory, 2.0),
    (recall.interview, 1.2),
    (recall.told_now, 1.0),
    (json_answers.json_answer, 6.0),
    (json_answers.several_answers, 5.0),
    (tool_calls.call, 8.0),
    (tool_calls.calls_in_turns, 1.0),
    (tool_calls.choices, 1.5),
    (tool_calls.choose, 1.5),
    (tool_calls.several_calls, 1.5),
    (tool_calls.no_tool, 1.0),
    (tool_calls.anything, 1.5),
    (drills.repeat, 1.5),
    (drills.look_up, 1.0),
)

# Finding a word again and saying what stood behind it, and choosing by what things are for:
# everything else rests on that, and it is learnt from dense examples in minutes where sparse ones
# take hours.
FIRST: tuple[tuple[Task, float], ...] = (
    (drills.repeat, 30.0),
    (drills.look_up, 30.0),
    (tool_calls.choose, 20.0),
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
