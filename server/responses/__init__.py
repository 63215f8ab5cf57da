"""OpenAI's Responses API, as another way to ask for and to write down a chat answer.

A request becomes the equal chat request (`convert`, `read`), is validated and run as one, and the
chat chunks that come back become output items (`items`, `logprobs`) and events (`stream`). `store`
keeps ended responses in memory, for `previous_response_id` and to be read again; `background` runs
those that nobody waits for. `routes` is what the application adds.
"""

from server.responses.protocol import ResponsesRequest
from server.responses.routes import add_response_routes
from server.responses.store import ResponseKeeper, ResponseStore, StoredItem, StoredResponse

__all__ = [
    "ResponseKeeper",
    "ResponseStore",
    "ResponsesRequest",
    "StoredItem",
    "StoredResponse",
    "add_response_routes",
]
