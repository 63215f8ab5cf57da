"""One choice: engine token deltas in, finished text with its tokens out.

detokenize -> stop strings, token by token, so that what comes out does not depend on how the engine
grouped tokens into deltas. `ChoiceText` owns the count of completion tokens, the finish reason and
the stop reason of its choice. The text of a final stop token is shown only with `include_stop`;
stop strings and loops are looked for from token number `min_tokens` on.

`TokenStreams` runs the engine requests of one answer side by side; deltas come as they are made.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import NamedTuple

from engine import EngineClient, FinishReason, Request, RequestFailed, TokenDelta, TokenLogprobs
from server.detokenize import Detokenizer
from server.repetition import LoopDetector
from server.stops import StopMatcher
from server.tokenizer import Tokenizer
from server.valid import Generation

MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot say
REPETITION = "repetition_detected"  # the stop reason of an output that was stopped in a loop


class TokenInText(NamedTuple):
    """One output token that contributed to the text, asked for by `logprobs`."""

    id: int
    start: int  # characters of output text before it
    logprobs: TokenLogprobs


class Piece(NamedTuple):
    """What one token, or the end, adds to a choice."""

    text: str
    tokens: Sequence[TokenInText]  # whose text is out now; only if logprobs were asked for
    is_token: bool  # False: released at the end, belongs to no further token


class ChoiceText:
    """The text of one choice as it grows."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        keeps_ids: bool = False,
        shows_hidden: bool = False,
    ) -> None:
        """`keeps_ids`: somebody will `take_ids`.

        `shows_hidden`: pieces have the tokens without text too, an end of the answer among them.
        """
        self._shows_hidden = shows_hidden
        self._generation = generation
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, generation.skip_special_tokens)
        self._matcher = StopMatcher(generation.stop, generation.include_stop)
        self._min_tokens = generation.sampling.min_tokens if generation.stop else 0
        self._wants_tokens = generation.sampling.num_logprobs is not None
        rule = generation.repetition
        self._loops = LoopDetector(rule) if rule is not None else None
        self._has_looped = False
        self._ids: list[int] | None = [] if keeps_ids else None
        self._pending: list[TokenInText] = []  # whose text is not out yet
        self._num_chars_read = 0
        self._num_chars_out = 0
        self.num_tokens = 0  # sampled, up to the one that ended the choice
        self.finish: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def push(self, delta: TokenDelta) -> list[Piece]:
        """Take what the engine says. Once `finish` is set, nothing more may be pushed."""
        pieces: list[Piece] = []
        ids = delta.token_ids
        stop_id: int | None = None
        if delta.finish is FinishReason.STOP:
            ids, stop_id = ids[:-1], ids[-1]
        for i, token_id in enumerate(ids):
            self._count(token_id)
            if self._wants_tokens and (self._shows_hidden or not self._is_hidden(token_id)):
                start = self._num_chars_read
                self._pending.append(TokenInText(token_id, start, delta.logprobs[i]))
            text = self._match(self._detokenizer.push_one(token_id))
            if self._matcher.matched is not None:
                self._stop_at_string()
                pieces.append(self._piece(text, is_token=True))
                return pieces
            pieces.append(self._piece(text, is_token=True))
            is_cut = delta.finish is FinishReason.LENGTH and i == len(ids) - 1
            if self._loops is not None and self._ends_loop(token_id) and not is_cut:
                pieces.append(self._end_in_loop())
                return pieces
        if delta.finish is not None:
            if stop_id is not None:
                self._count(stop_id)
            pieces.append(self._end(delta, stop_id))
        return pieces

    def take_ids(self) -> list[int]:
        """The sampled tokens since the last call, a stop token included."""
        assert self._ids is not None, "nobody asked for them"
        ids, self._ids = self._ids, []
        return ids

    @property
    def is_cut(self) -> bool:
        """The output ended where the model would have gone on."""
        return self.finish is FinishReason.LENGTH or self._has_looped

    def _count(self, token_id: int) -> None:
        self.num_tokens += 1
        if self._ids is not None:
            self._ids.append(token_id)

    def _ends_loop(self, token_id: int) -> bool:
        assert self._loops is not None
        loops = self._loops.push(token_id)
        return loops and self.num_tokens >= self._generation.sampling.min_tokens

    def _match(self, text: str) -> str:
        self._num_chars_read += len(text)
        return self._matcher.push(text, too_early=self.num_tokens < self._min_tokens)

    def _flush(self) -> str:
        """The text that was held back; a stop string may have been completed in it."""
        text = self._match(self._detokenizer.flush())
        text += self._matcher.flush()
        if self._matcher.matched is not None:
            self._stop_at_string()
        return text

    def _end_in_loop(self) -> Piece:
        text = self._flush()
        if self.finish is None:
            self._has_looped = True
            self.finish = FinishReason.STOP
            self.stop_reason = REPETITION
        return self._piece(text, is_token=False)

    def _end(self, delta: TokenDelta, stop_id: int | None) -> Piece:
        text = self._flush()
        if self.finish is not None:
            return self._piece(text, is_token=False)
        self.finish = delta.finish
        if stop_id is not None and stop_id not in self._generation.eos_ids:
            self.stop_reason = stop_id
        shows_stop = self._generation.include_stop and not self._is_hidden(stop_id)
        if stop_id is not None and (shows_stop or self._shows_hidden) and self._wants_tokens:
            token = TokenInText(stop_id, self._num_chars_read, delta.logprobs[-1])
            self._pending.append(token)
        if stop_id is not None and shows_stop:
            shown = self._tokenizer.token_str(stop_id)
            self._num_chars_read += len(shown)
            text += shown
        piece = self._piece(text, is_token=False)
        if self._shows_hidden:  # behind the last character
            piece = Piece(piece.text, (*piece.tokens, *self._pending), is_token=False)
            self._pending = []
        return piece

    def _stop_at_string(self) -> None:
        self.finish = FinishReason.STOP
        self.stop_reason = self._matcher.matched

    def _is_hidden(self, token_id: int | None) -> bool:
        return (
            token_id is not None
            and self._generation.skip_special_tokens
            and self._tokenizer.is_special(token_id)
        )

    def _piece(self, text: str, *, is_token: bool) -> Piece:
        self._num_chars_out += len(text)
        if not self._pending:
            return Piece(text, (), is_token)
        num_out = 0
        while num_out < len(self._pending) and self._pending[num_out].start < self._num_chars_out:
            num_out += 1
        tokens, self._pending = self._pending[:num_out], self._pending[num_out:]
        return Piece(text, tokens, is_token)


class TokenStreams:
    """The deltas of several engine requests, merged as they come.

    Entering starts them; leaving, however that happens, closes what still runs, which cancels it in
    the engine. At most two deltas per request wait here: the engine's client merges the rest.
    """

    def __init__(self, engine: EngineClient, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue(
            len(requests)
        )
        self._open = set(range(len(requests)))

    async def __aenter__(self) -> "TokenStreams":
        if len(self._requests) > 1:
            self._tasks = [
                asyncio.create_task(self._pump(index)) for index in range(len(self._requests))
            ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def deltas(self) -> AsyncGenerator[tuple[int, TokenDelta], None]:
        """(index of the request, delta), until each has ended or was stopped."""
        if not self._tasks:
            async with aclosing(self._engine.submit(self._requests[0])) as stream:
                async for delta in stream:
                    yield 0, delta
                    if delta.finish is not None or not self._open:
                        return
            raise RequestFailed("the engine's stream ended without a finish")
        while self._open:
            index, delta = await self._queue.get()
            if isinstance(delta, Exception):
                raise delta
            if index in self._open:
                if delta.finish is not None:
                    self._open.discard(index)
                yield index, delta

    def stop(self, index: int) -> None:
        """End one request early: its text is complete."""
        self._open.discard(index)
        if self._tasks:
            self._tasks[index].cancel()

    async def _pump(self, index: int) -> None:
        try:
            async with aclosing(self._engine.submit(self._requests[index])) as stream:
                async for delta in stream:
                    await self._queue.put((index, delta))
                    if delta.finish is not None:
                        return
            raise RequestFailed("the engine's stream ended without a finish")
        except Exception as error:  # handed to the task that serves the answer
            await self._queue.put((index, error))
