"""schemathesis against the served application, by the server's own OpenAPI document.

All operations, over a real socket: values at the edges of every schema, random valid and invalid
requests, and chains of them (create a response, read it, delete it, read it again). The checks are
schemathesis' own: no status 5xx, only statuses, content types, headers and bodies that the document
knows, invalid requests refused, keys asked for, 405 for other methods, nothing left of the deleted.

A request that fits the schema may still be refused with 400: half of the rules need the model, the
tokenizer or another field. The engine of schemathesis is driven directly and in a thread: one loop
serves, as in production, and every problem is told, not the first.
"""

import asyncio
import json
from collections import defaultdict
from datetime import timedelta
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.run import PhaseName
from schemathesis.schemas import BaseSchema

from engine import FinishReason, QueueFull, Request
from server.limits import Limits
from server.messages.fault import MESSAGES_PATH
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.openapi import openapi_document
from server.openapi_schemas import EXAMPLES, FIELDS
from server.protocol import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    WireModel,
    parse_wire,
)
from server.responses.protocol import ResponsesRequest
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, Script, build_server
from tests.server.http.asking import say
from tests.server.http.live import get, post, serving

pytestmark = pytest.mark.anyio

KEY = "sk-test"
STREAMS = {
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    f"POST {MESSAGES_PATH}",
}
WITH_BODY = sorted(
    path
    for path, methods in openapi_document("1.2.3")["paths"].items()
    if "requestBody" in methods.get("post", {})
)
MODELS: list[type[WireModel]] = [
    ChatMessage,
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    DetokenizeRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
]
READ, DELETE = "GET /v1/responses/{id}", "DELETE /v1/responses/{id}"
# Only what was created in the background is cancelled, and streamed again.
RARELY_SUCCEEDS = {"POST /v1/responses/{id}/cancel"}
RARELY_STREAMED = {READ}
LAST_EVENTS = {"message_stop", "response.completed", "response.incomplete"}
ALLOWED_OF_VALID = ["2xx", "400", "404"]  # 404: a model, or a response, that there is not
UNWELL = {
    "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
    "positive_data_acceptance": {"enabled": False},
    "negative_data_rejection": {"enabled": False},
}


class Run:
    """What schemathesis did and found."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.statuses: defaultdict[str, set[int]] = defaultdict(set)  # by operation
        self.streamed: set[str] = set()
        self.after_delete: set[int] = set()  # what reading a deleted response gave

    def fuzz(self, url: str, **options: Any) -> None:
        """Blocks: the server has to run in another thread."""
        config = {
            "base-url": url,
            "seed": 20,
            "continue-on-failure": True,
            "max-stream-events": 10_000,
            "generation": {"deterministic": True, "database": "none", "no-shrink": True},
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ALLOWED_OF_VALID},
                # A response that was created with `store: false` is not there to be read.
                "ensure_resource_availability": {"enabled": False},
            },
            "auth": {"openapi": {"key": {"bearer": KEY}, "anthropic_key": {"api_key": KEY}}},
            **options,
        }
        headers = {"authorization": f"Bearer {KEY}"}
        document = httpx.get(f"{url}/openapi.json", headers=headers, trust_env=False).json()
        schema = schemathesis.openapi.from_dict(
            document, config=SchemathesisConfig.from_dict(config)
        )
        for event in from_schema(schema).execute():
            match event:
                case events.FatalError():
                    raise event.exception
                case events.NonFatalError():
                    self.problems[f"{event.label}: error"] = repr(event.value)
                case events.ScenarioFinished():
                    self._read(event)
                case _:
                    pass

    def _read(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        deleted: set[str] = set()
        for case_id, interaction in recorder.interactions.items():
            if interaction.response is None:
                continue
            operation = recorder.cases[case_id].value.operation.label
            if recorder.cases[case_id].value.method == operation.partition(" ")[0]:
                self.statuses[operation].add(interaction.response.status_code)
            if event.phase is PhaseName.STATEFUL_TESTING:
                response_id = recorder.cases[case_id].value.path_parameters.get("id")
                if operation == READ and response_id in deleted:
                    self.after_delete.add(interaction.response.status_code)
                if operation == DELETE and interaction.response.status_code == 200:
                    deleted.add(response_id)
            if interaction.response.headers["content-type"][0].startswith("text/event-stream"):
                self.streamed.add(operation)
                check_stream(interaction.response)
        for nodes in recorder.checks.values():
            for node in nodes:
                if node.status is Status.FAILURE and node.failure_info is not None:
                    failure = node.failure_info.failure
                    text = f"{failure.message}\n{node.failure_info.code_sample}"
                    self.problems.setdefault(f"{recorder.label}: {failure.title}", text)
                assert node.status is not Status.ERROR, (recorder.label, node.name)

    @property
    def report(self) -> str:
        return "\n\n".join(f"{title}\n{text[:1500]}" for title, text in self.problems.items())


def check_stream(response: Response) -> None:
    """Whole events, none of them an error, the last one what ends a stream of this API.

    Or none: of a response that is over, behind its last one.
    """
    if not response.text:
        return
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    *datas, last = [block.rpartition("data: ")[2] for block in blocks]
    for data in datas:
        event = json.loads(data)
        assert "error" not in event or event["error"] is None
    assert last == "[DONE]" or json.loads(last)["type"] in LAST_EVENTS


def check_documented(schema: BaseSchema, path: str, response: httpx.Response) -> None:
    operation = schema[path]["POST"]
    assert str(response.status_code) in operation.definition.raw["responses"]
    operation.validate_response(response)  # headers and body


def build(
    validator: Validator, tokenizer: Tokenizer, *keys: str, limits: Limits | None = None
) -> FakeServer:
    """A server whose model says a sentence, up to the limit asked for."""
    server = build_server(validator, tokenizer, api_keys=keys, limits=limits)
    ids = tuple(step[0] for step in say(tokenizer, "The quick brown fox."))

    def script(request: Request) -> Script:
        said = ids[: request.sampling.max_tokens]
        return Script([said], FinishReason.STOP if said == ids else FinishReason.LENGTH)

    server.engine.default = script
    return server


def documented(**choices: Any) -> set[str]:
    paths = openapi_document("1.2.3", **choices)["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


async def test_the_document_is_what_the_server_does(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    server = build(validator, tokenizer)
    run = Run()
    phases = {
        "coverage": {"unexpected-methods": ["PUT"]},
        "fuzzing": {"generation": {"max-examples": 15}},
        "stateful": {
            "max-steps": 5,
            "inference": {"algorithms": []},  # chains as the document's own links make them
            "generation": {"max-examples": 25},
        },
    }
    async with serving(server) as live:
        await asyncio.to_thread(run.fuzz, live.url, phases=phases, auth={})
    assert not run.problems, run.report
    # The fuzzing went deep enough to mean something.
    succeeded = {o for o, seen in run.statuses.items() if 200 in seen}
    assert succeeded | RARELY_SUCCEEDS == documented()
    assert run.streamed | RARELY_STREAMED == STREAMS | RARELY_STREAMED
    assert run.after_delete <= {404}  # not every run reads a response that it deleted
    assert all(401 not in seen for seen in run.statuses.values())
    assert len(server.engine.submitted) > 500
    assert server.engine.num_active == server.lifecycle.num_in_flight == 0


async def test_the_document_of_a_server_with_a_key(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    """With the key in every request, which `ignored_auth` takes away and spoils."""
    server = build(validator, tokenizer, KEY)
    run = Run()
    phases = {
        "coverage": {"enabled": False},
        "fuzzing": {"generation": {"max-examples": 8}},
        "stateful": {"max-steps": 5, "generation": {"max-examples": 5}},
    }
    async with serving(server) as live:
        await asyncio.to_thread(run.fuzz, live.url, phases=phases)
        async with httpx.AsyncClient(base_url=live.url, trust_env=False) as client:
            document = (await client.get("/openapi.json", headers={"x-api-key": KEY})).json()
            assert set(document) == {"error"}  # Anthropic's way of sending a key is for its routes
    assert not run.problems, run.report
    assert set(run.statuses) == documented()
    guarded = {o for o, seen in run.statuses.items() if 401 in seen}
    probes = {o for o in documented() if o.split(" ")[1] in ("/live", "/ready", "/health")}
    assert guarded | RARELY_SUCCEEDS == documented() - probes


@pytest.mark.parametrize(("state", "status"), [("full", 429), ("starting", 503), ("dead", 503)])
async def test_the_document_knows_a_server_that_is_not_well(
    validator: Validator, tokenizer: Tokenizer, state: Any, status: int
) -> None:
    server = build(validator, tokenizer)
    if state == "full":
        server.engine.default = lambda request: Script([QueueFull("full")])
    run = Run()
    phases = {
        "coverage": {"enabled": False},
        "fuzzing": {"generation": {"max-examples": 3, "mode": "positive"}},
        "stateful": {"enabled": False},
    }
    async with serving(server) as live:
        if state != "full":
            server.engine.state = state
        await asyncio.to_thread(run.fuzz, live.url, phases=phases, auth={}, checks=UNWELL)
    assert not run.problems, run.report
    assert {o for o, seen in run.statuses.items() if status in seen} >= STREAMS


async def test_the_document_knows_what_is_refused_unread(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    limits = Limits(max_body_bytes=100, max_head_bytes=4096, body_pause_s=0.01)
    requests: list[tuple[int, dict[str, Any]]] = [
        (413, {"json": {"model": "x" * 200}}),
        (431, {"headers": {"x-large": "x" * 5000}, "json": {}}),
        (415, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    ]
    schema = schemathesis.openapi.from_dict(openapi_document("1.2.3", has_keys=False))
    async with (
        serving(build(validator, tokenizer, limits=limits)) as live,
        httpx.AsyncClient(base_url=live.url, trust_env=False) as client,
    ):
        for path in WITH_BODY:
            for status, request in requests:
                response = await client.post(path, **request)
                assert response.status_code == status
                check_documented(schema, path, response)
            reply = await live.ask(post(path, {"model": "tiny"})[:-5])  # the rest never comes
            assert reply.status == 408
            response = httpx.Response(
                408,
                headers=reply.headers,
                content=reply.body,
                request=httpx.Request("POST", live.url + path),
            )
            response.elapsed = timedelta(0)
            check_documented(schema, path, response)


async def test_the_document_knows_one_connection_too_many(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    schema = schemathesis.openapi.from_dict(openapi_document("1.2.3", has_keys=False))
    async with serving(build(validator, tokenizer, limits=Limits(max_connections=1))) as live:
        held = await live.connect()
        await held.send(get("/live"))
        assert (await held.reply()).status == 200
        for path in WITH_BODY:
            headers = {"x-request-id": "mine"}
            async with httpx.AsyncClient(base_url=live.url, trust_env=False) as client:
                response = await client.post(path, json={}, headers=headers)
            assert response.status_code == 503
            assert response.headers["connection"] == "close"
            assert response.headers["x-request-id"] == "mine"
            check_documented(schema, path, response)
        await held.close()


def test_what_the_document_adds_is_there_to_be_added_to() -> None:
    """Fields and examples by name: the models have them, and examples are what they describe."""
    schemas = openapi_document("1.2.3")["components"]["schemas"]
    for described in (FIELDS, EXAMPLES):
        for name, fields in described.items():
            model = next(model for model in MODELS if model.__name__ == name)
            assert set(fields) <= set(model.model_fields), name
    for name, example in EXAMPLES.items():
        model = next(model for model in MODELS if model.__name__ == name)
        parse_wire(model, example)
        assert set(schemas[name].get("required", ())) <= set(example)


def test_operation_ids_are_unique_and_links_lead_somewhere() -> None:
    operations = [
        operation
        for methods in openapi_document("1.2.3")["paths"].values()
        for operation in methods.values()
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    links = [
        link["operationId"]
        for operation in operations
        for link in operation["responses"].get("200", {}).get("links", {}).values()
    ]
    assert len(links) == 4
    assert set(links) <= set(ids)
