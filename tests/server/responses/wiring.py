"""The fake server with the routes of responses, whether `create_app` adds them itself or not."""

from collections.abc import Sequence

from fastapi import FastAPI

from server.limits import Limits
from server.responses import ResponseStore, add_response_routes
from server.responses.routes import PATH
from server.site import Site
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server


def build(
    validator: Validator,
    tokenizer: Tokenizer,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    store: ResponseStore | None = None,
    stores: bool = True,
) -> FakeServer:
    fake = build_server(validator, tokenizer, api_keys=api_keys, limits=limits)
    api: FastAPI = fake.app._api
    api.router.routes[:] = [
        route for route in api.routes if not getattr(route, "path", "").startswith(PATH)
    ]
    site = Site(
        engine=fake.engine,
        validator=validator,
        tokenizer=tokenizer,
        served_names=("tiny", "alias"),
        model_root="tiny-root",
        version="1.2.3",
        lifecycle=fake.lifecycle,
        metrics=fake.metrics,
        limits=fake.limits,
    )
    kept = (ResponseStore() if store is None else store) if stores else None
    add_response_routes(api, site, kept, has_keys=bool(api_keys))
    return fake
