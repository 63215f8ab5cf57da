"""One request on its way through the engine. Only the scheduler changes it."""

from dataclasses import dataclass, field

from engine.memory import Node
from engine.plan import PAGE_TOKENS, SCRATCH
from engine.request import FinishReason, Request, TokenLogprobs


@dataclass(slots=True, eq=False)
class Sequence:
    """`ids` are the tokens the host knows: the prompt, then every committed output token.

    `num_planned` are the tokens the runner has been told to compute. Planning one past `ids` is the
    normal state of decoding: the missing token is already on the device.
    """

    request: Request
    arrival: int
    ids: list[int]
    keys: list[bytes]  # of the prompt's pages; none: it takes nothing from the cache
    stop_ids: frozenset[int]
    num_planned: int = 0
    prefill_end: int = 0  # tokens known at the last admission: from here on each slice decodes
    epoch: int = 0  # grows when planned work is given up, so late results can be told apart
    pages: list[int] = field(default_factory=list[int])
    path: list[Node] = field(default_factory=list[Node])  # held in the prefix cache, from the root
    save_ends: list[int] = field(default_factory=list[int])  # where states are yet to be saved
    coming: set[bytes] = field(default_factory=set[bytes])  # keys of these, and of those in flight
    slot: int = SCRATCH
    num_preemptions: int = 0
    num_cached: int = 0  # tokens that its first admission found
    reported: bool = False  # its first delta is out
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])

    @classmethod
    def of(cls, request: Request, arrival: int, keys: list[bytes]) -> "Sequence":
        stop_ids = frozenset(request.sampling.stop_token_ids)
        return cls(request, arrival, ids=list(request.prompt_ids), keys=keys, stop_ids=stop_ids)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: lower priority number, then earlier arrival."""
        return (self.request.priority, self.arrival)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def prefills(self) -> bool:
        return self.num_planned < self.prefill_end

    @property
    def may_decode(self) -> bool:
        """There is, or will be on the device, one more token to compute a successor of."""
        return not self.prefills and self.num_planned < self.request.max_total_tokens - 1

    @property
    def scores_prompt(self) -> bool:
        wanted = self.request.sampling.num_prompt_logprobs is not None
        return wanted and not self.reported and self.num_planned < self.num_prompt - 1

    @property
    def own_pages(self) -> list[int]:
        """Pages that are no node's: behind its path, and where another's page is in its path."""
        shared = {node.page for node in self.path}
        return [page for page in self.pages if page not in shared]

    @property
    def num_saved(self) -> int:
        """Prompt tokens it computed that others need not."""
        return max(0, len(self.path) * PAGE_TOKENS - self.num_cached)

    def finish_after(self, token_id: int) -> FinishReason | None:
        """Why the sequence ends with `token_id`, its newest token; None if it goes on."""
        if token_id in self.stop_ids:
            return FinishReason.STOP
        if len(self.ids) >= self.request.max_total_tokens:
            return FinishReason.LENGTH
        return None

    def give_up_progress(self) -> None:
        """Forget what the device computed; keep what the client has."""
        self.epoch += 1
        self.num_planned = 0
        if not self.reported:
            self.prompt_logprobs.clear()
