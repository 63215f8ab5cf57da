"""Wire request -> a value of `server.valid`, or a BadRequest that names the field and the rule.

Everything about a request that can be known without the engine is decided here, so that nobody
checks again. It costs CPU (templates, tokenizing): call it in a worker thread; a `Validator` holds
no state between calls but the source of seeds. `max_model_len` and `serves_media` are settable
because the engine knows them only once started.

Images and videos have to be loaded between two looks at a chat: `media_of` says which it names, and
`chat`, `render` and `tokenize` take what they turned out to be.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from engine import Media, ModelConfig, SamplingParams
from server.chat_prompt import ChatPrompter, check_chars
from server.checkpoint_text import GenerationDefaults
from server.constraints import FIELDS, ConstraintReader, binds_content, bound_calls
from server.dry_breakers import DryBreakers
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits
from server.media.loaded import MediaRef
from server.media.loader import MAX_REQUEST_BYTES, check_number
from server.media_parts import LoadedByKey, media_refs
from server.protocol import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    DetokenizeRequest,
    SamplingFields,
    TokenizeRequest,
)
from server.template import THINK_CLOSE, ChatTemplate, starts_in_reasoning
from server.tokenizer import Tokenizer
from server.turns import Turns
from server.valid import Generation, StreamOptions, TokenExtras, ValidChat, ValidCompletion
from server.validate_sampling import SamplingRules
from server.validate_tools import active_tools, check_tools
from server.validate_unsupported import refuse_unsupported

NO_MEDIA: LoadedByKey = {}
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions
CALL_OPEN = "<tool_call>"
CALL_TAGS = (CALL_OPEN, "<function=")


class Validator:
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        model_config: ModelConfig,
        generation_defaults: GenerationDefaults,
        *,
        served_names: tuple[str, ...],
        max_model_len: int,
        seed: int | None = None,
        constraints: ConstraintReader,
        literal_control_tokens: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        queue_size: int | None = None,
    ) -> None:
        """`seed` starts the seeds of requests that name none; None draws them from chance.

        `queue_size` is how many answers may wait for the engine: what asks for more at once could
        never be taken, however often it is sent again. None: not known, so nothing is refused.

        With `literal_control_tokens`, names of control tokens stay text in what users and tools
        say.
        """
        self.max_model_len = max_model_len
        self.limits = limits
        self.serves_media = False
        self._tokenizer = tokenizer
        self._served_names = served_names
        self._queue_size = queue_size
        self._constraints = constraints
        self._turns = Turns(tokenizer)
        self._prompter = ChatPrompter(
            tokenizer,
            template,
            model_config.vision,
            literal_control_tokens=literal_control_tokens,
            limits=limits,
        )
        ends = {*generation_defaults.eos_ids, *model_config.eos_token_id, *tokenizer.eos_ids}
        self._rules = SamplingRules(
            tokenizer=tokenizer,
            vocab_size=model_config.vocab_size,
            defaults=generation_defaults,
            breakers=DryBreakers(tokenizer),
            seeds=random.SystemRandom() if seed is None else random.Random(seed),
            eos_ids=frozenset(i for i in ends if 0 <= i < model_config.vocab_size),
        )

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end an answer, from wherever the checkpoint names them."""
        return self._rules.eos_ids

    def media_of(self, messages: Sequence[ChatMessage]) -> tuple[MediaRef, ...]:
        """What has to be loaded before a chat can be judged, in the order of its parts."""
        refs = media_refs(messages)
        if refs and not (self.serves_media and self._prompter.takes_media):
            path = refs[0].path
            raise BadRequest(f"{path}: this model takes no images or videos", param=path)
        check_number(refs, self.limits)  # before equal ones become one: in tokens, each counts
        return tuple(refs)

    def chat(self, request: ChatCompletionRequest, media: LoadedByKey = NO_MEDIA) -> ValidChat:
        """`media` are what `media_of` named."""
        return self._chat(request, media)[0]

    def render(
        self, request: ChatCompletionRequest, media: LoadedByKey = NO_MEDIA
    ) -> dict[str, Any]:
        """The whole response of /v1/chat/completions/render: what `chat` would have run."""
        valid, text = self._chat(request, media)
        ids = valid.generation.prompt_ids
        if request.truncate_prompt_tokens is not None:
            text = self._tokenizer.decode(ids)
        return {
            "model": request.model or self._served_names[0],
            "prompt": text,
            "token_ids": ids,
            "count": len(ids),
            "max_model_len": self.max_model_len,
        }

    def _chat(self, request: ChatCompletionRequest, media: LoadedByKey) -> tuple[ValidChat, str]:
        """A valid request, and its prompt as the template rendered it."""
        self._check_model(request.model)
        refuse_unsupported(request)
        self._check_fits_queue(1, request.n)
        check_tools(request.tools, self.limits.max_tool_name_chars)
        tools = active_tools(request)
        if tools is not None and request.tool_choice not in (None, "auto"):
            # The answer is calls, whole ones: what could stop it is inside of them.
            self._rules.checked_ids(request.stop_token_ids, "stop_token_ids")
            request = request.model_copy(update={"stop": (), "stop_token_ids": []})
        stream = _stream_options(request)
        num_logprobs = _chat_logprobs(request)
        extras = _extras(request)
        window = self.max_model_len
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        asked = request.max_completion_tokens or request.max_tokens
        _check_max_tokens(asked, name, window)
        prompt = self._prompter.prompt(
            request,
            request.messages,
            media,
            add_special_tokens=request.add_special_tokens,
            window=window,
        )
        if prompt.media and request.truncate_prompt_tokens is not None:
            raise BadRequest(
                "truncate_prompt_tokens could cut an image or a video: leave it out",
                param="truncate_prompt_tokens",
            )
        num_bytes = sum(len(picture.pixels) for picture in prompt.media)
        n = request.n or 1
        if n * num_bytes > MAX_REQUEST_BYTES:
            raise BadRequest(
                "The images and videos, which every choice takes along, are too large together.",
                param="n" if n > 1 else "messages",
            )
        ids = _fitted(prompt.ids, request, "messages", window)
        room = window - len(ids)
        max_tokens = room if asked is None else min(asked, room)
        sampling = self._rules.sampling(
            request,
            max_tokens=max_tokens,
            min_tokens=_min_tokens(request, asked or window, max_tokens),
            num_logprobs=num_logprobs,
            num_prompt_logprobs=extras.num_prompt_logprobs,
        )
        thinking = starts_in_reasoning(prompt.text)
        if request.thinking_token_budget is not None:
            end_id = self._thinking_end()
            if thinking:
                sampling = msgspec.structs.replace(
                    sampling,
                    thinking_budget=request.thinking_token_budget,
                    thinking_end_id=end_id,
                    thinking_call_tags=CALL_TAGS if tools is not None else None,
                )
        constraints = _constraint_fields(request)
        sampling = self._bound(sampling, constraints, thinking=thinking)
        valid = ValidChat(
            generation=dataclasses.replace(
                self._generation(request, ids, sampling, prompt.media),
                boundaries=self._turns.boundaries(ids),
            ),
            stream=stream,
            tools=tools,
            thinking=thinking,
            content_is_bound=binds_content(constraints),
            bound_calls=bound_calls(constraints),
            include_reasoning=request.include_reasoning,
            parallel_tool_calls=request.parallel_tool_calls,
            logprobs=request.logprobs,
            extras=extras,
        )
        return valid, prompt.text

    def completion(self, request: CompletionRequest) -> ValidCompletion:
        self._check_model(request.model)
        refuse_unsupported(request)
        self._check_fits_queue(len(request.prompt), request.n)
        stream = _stream_options(request)
        extras = _extras(request)
        scored = (request.logprobs if request.echo else None, extras.num_prompt_logprobs)
        window = self.max_model_len
        asked = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        _check_max_tokens(request.max_tokens, "max_tokens", window)
        if asked == 0 and not request.echo:
            raise BadRequest("max_tokens must be at least 1 without echo", param="max_tokens")
        sampling = self._rules.sampling(
            request,
            max_tokens=asked,
            min_tokens=_min_tokens(request, asked, asked),
            num_logprobs=request.logprobs,
            num_prompt_logprobs=max((k for k in scored if k is not None), default=None),
        )
        sampling = self._bound(sampling, _constraint_fields(request), thinking=False)
        generations: list[Generation] = []
        texts: list[str] = []
        for given in request.prompt:
            ids, text = self._completion_prompt(given, request, window)
            max_tokens = min(asked, window - len(ids))
            fitted = msgspec.structs.replace(
                sampling,
                max_tokens=max_tokens,
                min_tokens=min(sampling.min_tokens, max_tokens),
                seed=self._rules.seed_of(request),
            )
            generations.append(self._generation(request, ids, fitted))
            texts.append(text)
        return ValidCompletion(
            generations=tuple(generations),
            prompt_texts=tuple(texts),
            stream=stream,
            echo=request.echo,
            num_logprobs=request.logprobs,
            extras=extras,
        )

    def tokenize(self, request: TokenizeRequest, media: LoadedByKey = NO_MEDIA) -> dict[str, Any]:
        """The whole response of /tokenize. A prompt past the window is counted, not refused."""
        self._check_model(request.model)
        window = self.max_model_len
        specials = request.add_special_tokens
        if (request.prompt is None) == (request.messages is None):
            raise BadRequest("exactly one of prompt and messages is required", param="prompt")
        if request.messages is not None:
            check_tools(request.tools, self.limits.max_tool_name_chars)
            prompt = self._prompter.prompt(
                request,
                request.messages,
                media,
                add_special_tokens=specials is True,
                window=window,
            )
            ids = prompt.ids
        else:
            ids = self._tokenized(request.prompt or "", specials is not False, "prompt", window)
        pieces = None
        if request.return_token_strs:
            pieces = [self._tokenizer.token_piece(i) for i in ids]
        return {
            "count": len(ids),
            "max_model_len": window,
            "tokens": ids,
            "token_strs": pieces,
        }

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """The whole response of /detokenize."""
        self._check_model(request.model)
        most = self.limits.max_chars_per_token * self.max_model_len
        if len(request.tokens) > most:
            raise BadRequest(f"tokens must have at most {most} entries", param="tokens")
        self._rules.check_range(request.tokens, "tokens")
        return {"prompt": self._tokenizer.decode(request.tokens)}

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._served_names:
            raise BadRequest(
                "model: no such model is served here; GET /v1/models lists the names",
                param="model",
                status=404,
                code="model_not_found",
            )

    def _check_fits_queue(self, num_prompts: int, n: int) -> None:
        if self._queue_size is None or num_prompts * n <= self._queue_size:
            return
        param = "n" if num_prompts <= self._queue_size else "prompt"
        raise BadRequest(
            f"{param}: {num_prompts * n} answers are asked for at once, and this server's queue "
            f"takes {self._queue_size}: send them in parts",
            param=param,
        )

    def _tokenized(self, text: str, add_special_tokens: bool, param: str, window: int) -> list[int]:
        check_chars(text, param, window, self.limits.max_chars_per_token)
        return self._tokenizer.encode(text, add_special_tokens)

    def _completion_prompt(
        self, given: str | list[int], request: CompletionRequest, window: int
    ) -> tuple[list[int], str]:
        """The ids of one prompt that fits, and its text for `echo`."""
        if isinstance(given, str):
            ids = self._tokenized(given, request.add_special_tokens, "prompt", window)
        else:
            self._rules.check_range(given, "prompt")
            ids = given
        fitted = _fitted(ids, request, "prompt", window)
        if isinstance(given, str) and len(fitted) == len(ids):
            return fitted, given
        return fitted, self._tokenizer.decode(fitted)

    def _generation(
        self,
        request: SamplingFields,
        ids: list[int],
        sampling: SamplingParams,
        media: tuple[Media, ...] = (),
    ) -> Generation:
        return Generation(
            prompt_ids=tuple(ids),
            media=media,
            sampling=sampling,
            n=request.n,
            stop=request.stop,
            include_stop=request.include_stop_str_in_output,
            eos_ids=frozenset() if request.ignore_eos else self._rules.eos_ids,
            skip_special_tokens=request.skip_special_tokens,
            priority=request.priority,
            cache_salt=request.cache_salt,
            repetition=self._rules.repetition(request),
        )

    def _bound(
        self,
        sampling: SamplingParams,
        fields: dict[str, Any],
        *,
        thinking: bool,
    ) -> SamplingParams:
        """`sampling` with what the answer has to look like, if `_constraint_fields` say so."""
        close_id = self._tokenizer.id_of(THINK_CLOSE) if thinking else None
        spec = self._constraints.read(
            fields, after_token_id=close_id, call_token_id=self._tokenizer.id_of(CALL_OPEN)
        )
        if spec is not None and thinking and close_id is None:
            raise BadRequest(
                f"with thinking on, this needs a model with a {THINK_CLOSE} token",
                param="chat_template_kwargs",
            )
        if spec is None:
            return sampling
        # An answer that is complete ends, with `ignore_eos` too: nothing else may follow.
        ends = tuple(sorted(self.eos_ids.union(sampling.stop_token_ids)))
        return msgspec.structs.replace(sampling, grammar=spec, stop_token_ids=ends)

    def _thinking_end(self) -> int:
        close_id = self._tokenizer.id_of(THINK_CLOSE)
        if close_id is None:
            raise BadRequest(
                f"thinking_token_budget needs a model with a {THINK_CLOSE} token",
                param="thinking_token_budget",
            )
        return close_id


def _fitted(ids: list[int], request: SamplingFields, param: str, window: int) -> list[int]:
    """Truncate as asked; refuse a prompt that is empty or leaves no room to generate."""
    keep = request.truncate_prompt_tokens
    if keep == 0:
        raise BadRequest(
            "truncate_prompt_tokens must be -1 or at least 1", param="truncate_prompt_tokens"
        )
    if keep is not None:
        ids = ids[-(window - 1 if keep == -1 else keep) :]
    if not ids:
        raise BadRequest(f"{param} must not be empty", param=param)
    if len(ids) >= window:
        raise BadRequest(
            f"{param} has {len(ids)} tokens, but this model's maximum context length is "
            f"{window} tokens, prompt and answer together",
            param=param,
            code="context_length_exceeded",
        )
    return ids


def _stream_options(request: SamplingFields) -> StreamOptions | None:
    options = request.stream_options
    if not request.stream:
        if options is not None:
            raise BadRequest("stream_options needs stream to be true", param="stream_options")
        return None
    if options is None:
        return StreamOptions()
    return StreamOptions(
        include_usage=options.include_usage,
        continuous_usage=options.include_usage and options.continuous_usage_stats,
    )


def _constraint_fields(request: ChatCompletionRequest | CompletionRequest) -> dict[str, Any]:
    return {name: getattr(request, name, None) for name in FIELDS}


def _chat_logprobs(request: ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs is not None:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return None


def _extras(request: SamplingFields) -> TokenExtras:
    if request.stream and request.prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    return TokenExtras(
        token_ids=request.return_token_ids,
        tokens_as_ids=request.return_tokens_as_token_ids,
        num_prompt_logprobs=request.prompt_logprobs,
        timings=request.timings,
    )


def _check_max_tokens(asked: int | None, param: str, window: int) -> None:
    if asked is not None and asked > window:
        raise BadRequest(
            f"{param} must be at most {window}, this model's maximum context length", param=param
        )


def _min_tokens(request: SamplingFields, asked: int, max_tokens: int) -> int:
    """`min_tokens`, checked against what was asked and clamped as `max_tokens` was."""
    if request.min_tokens > asked:
        raise BadRequest(f"min_tokens must be at most max_tokens, {asked}", param="min_tokens")
    return min(request.min_tokens, max_tokens)
