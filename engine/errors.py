"""What can go wrong in the engine, seen by its caller.

EngineError
├── CallerError              the request's own fault; but for the last two, before any output
│   ├── RequestTooLong       could never fit in the memory there is          -> 400
│   ├── QueueFull            the bound on waiting requests is reached         -> 429, try later
│   ├── QueueTimeout         waited longer than the bound                     -> 503, try later
│   ├── GrammarTooSlow       its grammar could not be compiled in time        -> 400
│   ├── GrammarStuck         its grammar ran into a limit or a dead end       -> 400
│   └── StreamTooSlow        nobody takes its output for too long             -> 408, in mid-stream
└── EngineFault              ours; may come in the middle of a stream
    ├── RequestFailed        this request only; the engine goes on            -> 500
    ├── EngineStarting       weights are still loading                        -> 503, try later
    └── EngineDied           the engine process died or hangs                 -> 503, try later

`code` is the stable word that crosses the process boundary and ends up in the error body.
"""


class EngineError(Exception):
    code = "internal_error"


class CallerError(EngineError):
    pass


class RequestTooLong(CallerError):
    code = "context_length_exceeded"


class QueueFull(CallerError):
    code = "queue_full"


class QueueTimeout(CallerError):
    code = "queue_timeout"


class GrammarTooSlow(CallerError):
    code = "grammar_too_slow"


class GrammarStuck(CallerError):
    code = "grammar_stuck"


class StreamTooSlow(CallerError):
    code = "stream_too_slow"  # raised by the server's end of the line: crosses no boundary


class EngineFault(EngineError):
    pass


class RequestFailed(EngineFault):
    code = "internal_error"


class EngineStarting(EngineFault):
    code = "starting"


class EngineDied(EngineFault):
    code = "engine_dead"


BY_CODE: dict[str, type[EngineError]] = {
    kind.code: kind
    for kind in (
        RequestTooLong,
        QueueFull,
        QueueTimeout,
        GrammarTooSlow,
        GrammarStuck,
        RequestFailed,
        EngineStarting,
        EngineDied,
    )
}
