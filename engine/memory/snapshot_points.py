"""Where in a prompt recurrent states are worth saving, in pages from its start.

A prefix can be continued only where a state was saved, and saving one costs as much memory as
dozens of pages. So few places are chosen, those where other prompts are likely to part from this:

- the last page boundary: where the other choices of the same prompt begin, and who asks again;
- what the caller names: the ends of system prompt and turns, where conversations go on;
- without such names, points before the end at distances that grow fourfold, so that a prompt with
  another tail of t tokens finds a state at most about 4 t tokens before it;
- where this prompt parts from one seen before: the third of a kind then finds what the second did
  not (the rule of Marconi, Pan et al. 2024, arXiv:2411.19379).
"""

from collections.abc import Sequence

from engine.plan import PAGE_TOKENS


def snapshot_points(
    num_pages: int, boundaries: Sequence[int], *, num_seen: int, pages_per_state: int
) -> list[int]:
    """Rising depths in 1 .. `num_pages`, the pages of a prompt that may be cached.

    `boundaries` are tokens from the start; `num_seen` pages are the same as in an earlier prompt; a
    state takes the memory of `pages_per_state` pages, and closer than that no points are guessed.
    """
    points = {num_pages, num_seen, *(boundary // PAGE_TOKENS for boundary in boundaries)}
    if not boundaries:
        distance = max(1, pages_per_state)
        while distance < num_pages:
            points.add(num_pages - distance)
            distance *= 4
    return sorted(point for point in points if 0 < point <= num_pages)
