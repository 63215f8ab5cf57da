"""Several processes that answer requests, behind one listening socket and one engine.

```
parent    binds the socket, owns the engine process, starts and restarts the workers (`pool`),
          keeps what they share: stored responses (`shared_responses`), the sum of all metrics
worker    its own loop, application, tokenizer and link to the engine (`process`); takes
          connections from the socket that it inherited; one line to the parent (`parent_line`),
          and a unix socket for requests that only this worker can answer (`relay`)
```

The line between the two is a socket pair that carries typed messages (`messages`) and is the
worker's lifeline besides: when it closes, the worker ends, whatever it is doing. A worker that dies
costs its own connections; the engine is told to forget what it asked for.
"""
