"""The parts of a process that answers requests, put together from plain settings.

The one process of a small server and the worker processes of a larger one are built here alike;
what differs is passed in: the engine's client, the metrics, who keeps responses.
"""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from engine import EngineClient, EngineInfo, ModelConfig, UnreadBounds
from server.app import App, create_app
from server.checkpoint_text import read_checkpoint_text
from server.constraints import (
    ConstraintReader,
    GrammarChecker,
    GrammarQueue,
    KnownGrammars,
)
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.media import MediaAccess, MediaLoader, PixelLimits
from server.media.loader import MAX_HELD_BYTES, MAX_REQUEST_BYTES
from server.metrics import Metrics
from server.responses import ResponseKeeper
from server.tokenizer import Tokenizer
from server.validate import Validator


class FrontSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes that answer requests have in common; crosses to worker processes."""

    model_dir: str
    model_root: str  # the model as it was asked for
    served_names: tuple[str, ...]
    version: str
    created: int  # seconds since the epoch
    api_keys: tuple[str, ...]
    metrics_open: bool
    literal_control_tokens: bool
    models_sampling: bool  # what a request leaves out is as in generation_config.json
    serves_media: bool  # False: images and videos are refused, whatever the model could do
    media_domains: tuple[str, ...]  # from which they may be fetched
    media_dir: str | None  # in which they may be read
    limits: Limits
    shutdown_timeout_s: float
    seed: int | None  # None: requests without a seed never repeat
    log_level: int
    num_processes: int  # that answer requests, and share what the server may hold

    @property
    def unread_bounds(self) -> UnreadBounds:
        return UnreadBounds(
            max_deltas=self.limits.max_unread_chunks,
            max_bytes=self.limits.max_unread_bytes,
            patience_s=self.limits.send_stall_s,
        )

    def for_worker(self, index: int, num_before: int) -> "FrontSettings":
        """The same for one worker, with seeds of its own; `num_before` had its place before it."""
        if self.seed is None:
            return self
        seed = random.Random(f"{self.seed} {index} {num_before}").getrandbits(63)
        return msgspec.structs.replace(self, seed=seed)


class FrontParts:
    """A checkpoint's words, and what reads requests by them. Starts nothing."""

    def __init__(self, settings: FrontSettings) -> None:
        """Raises ValueError or OSError for a checkpoint that cannot be read."""
        self._settings = settings
        model_dir = Path(settings.model_dir)
        model_config = ModelConfig.from_dir(model_dir)
        text = read_checkpoint_text(model_dir)
        self.tokenizer: Tokenizer = text.tokenizer
        self.checker = GrammarChecker(time_limit_s=settings.limits.compile_timeout_s)
        self._media: MediaLoader | None = None
        if settings.serves_media and model_config.vision is not None:
            media_dir = None if settings.media_dir is None else Path(settings.media_dir)
            self._media = MediaLoader(
                model_config.vision,
                access=MediaAccess(settings.media_domains, media_dir),
                pixel_limits=PixelLimits.from_dir(model_dir),
                limits=settings.limits,
                max_held_bytes=max(MAX_HELD_BYTES // settings.num_processes, MAX_REQUEST_BYTES),
            )
        self.limits = settings.limits.shared_by(settings.num_processes)
        self.validator = Validator(
            text.tokenizer,
            text.template,
            model_config,
            text.defaults if settings.models_sampling else text.defaults.of_api(),
            served_names=settings.served_names,
            max_model_len=model_config.max_position_embeddings,  # until the engine knows what fits
            seed=settings.seed,
            constraints=ConstraintReader(KnownGrammars(self.checker), settings.limits),
            literal_control_tokens=settings.literal_control_tokens,
            limits=settings.limits,
        )

    def note_engine(self, info: EngineInfo) -> None:
        """Take up what only the started engine knows."""
        self.validator.max_model_len = info.max_model_len
        self.validator.serves_media = info.serves_media and self._media is not None

    async def close(self) -> None:
        """End what was started on the way, and leave no child behind."""
        self.checker.close()
        if self._media is not None:
            await self._media.close()

    def lifecycle(self, engine: EngineClient) -> Lifecycle:
        return Lifecycle(engine, request_timeout_s=self.limits.request_timeout_s)

    def metrics(self, engine: EngineClient | None) -> Metrics:
        return Metrics(engine, model_name=self._settings.served_names[0])

    def app(
        self,
        engine: EngineClient,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        responses: ResponseKeeper | None = None,
        scrape: Callable[[], Awaitable[bytes]] | None = None,
    ) -> App:
        settings = self._settings
        return create_app(
            engine,
            self.validator,
            self.tokenizer,
            served_names=settings.served_names,
            version=settings.version,
            model_root=settings.model_root,
            lifecycle=lifecycle,
            metrics=metrics,
            api_keys=settings.api_keys,
            open_metrics=settings.metrics_open,
            limits=self.limits,
            media=self._media,
            grammars=GrammarQueue(self.checker),
            responses=responses,
            scrape=scrape,
            created=settings.created,
        )
