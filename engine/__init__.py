"""Token ids in, token ids out. All the server may use; none of it loads torch."""

from engine.client import EngineClient, EngineInfo, EngineState, EngineStats
from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.device_memory import plan_gpu_memory
from engine.errors import (
    CallerError,
    EngineDied,
    EngineError,
    EngineFault,
    EngineStarting,
    GrammarStuck,
    GrammarTooSlow,
    QueueFull,
    QueueTimeout,
    RequestFailed,
    RequestTooLong,
    StreamTooSlow,
)
from engine.grammar import GrammarCompiler, GrammarError, GrammarSpec, Vocabulary
from engine.host_memory import available_bytes
from engine.log import flush_log, start_log
from engine.memory_plan import plan_memory
from engine.request import FinishReason, Media, Request, SamplingParams, TokenDelta, TokenLogprobs
from engine.tokenizer import open_tokenizer, piece_bytes, read_config_file
from engine.unread import UnreadBounds
from engine.vision_config import VisionConfig

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
    "GrammarCompiler",
    "GrammarError",
    "GrammarSpec",
    "GrammarStuck",
    "GrammarTooSlow",
    "Media",
    "MemoryPlan",
    "ModelConfig",
    "QueueFull",
    "QueueTimeout",
    "Request",
    "RequestFailed",
    "RequestTooLong",
    "SamplingParams",
    "StreamTooSlow",
    "TokenDelta",
    "TokenLogprobs",
    "UnreadBounds",
    "VisionConfig",
    "Vocabulary",
    "available_bytes",
    "flush_log",
    "open_tokenizer",
    "piece_bytes",
    "plan_gpu_memory",
    "plan_memory",
    "read_config_file",
    "start_log",
]
