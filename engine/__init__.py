"""Token ids in, token ids out. All the server may use; none of it loads torch."""

from engine.client import EngineClient, EngineInfo, EngineState, EngineStats
from engine.config import EngineConfig, ModelConfig
from engine.errors import (
    CallerError,
    EngineDied,
    EngineError,
    EngineFault,
    EngineStarting,
    QueueFull,
    QueueTimeout,
    RequestFailed,
    RequestTooLong,
)
from engine.request import FinishReason, Request, SamplingParams, TokenDelta, TokenLogprobs

__all__ = [
    "CallerError",
    "EngineClient",
    "EngineConfig",
    "EngineDied",
    "EngineError",
    "EngineFault",
    "EngineInfo",
    "EngineStarting",
    "EngineState",
    "EngineStats",
    "FinishReason",
    "ModelConfig",
    "QueueFull",
    "QueueTimeout",
    "Request",
    "RequestFailed",
    "RequestTooLong",
    "SamplingParams",
    "TokenDelta",
    "TokenLogprobs",
]
