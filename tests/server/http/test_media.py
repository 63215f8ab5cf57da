"""Images and videos through every route that takes a chat: exact prompts, exact pictures."""

import asyncio
import base64
import gc
import io
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest
from PIL import Image

from engine import Media, ModelConfig, Request
from server import validate
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader
from server.media import MediaAccess, MediaLoader, PixelLimits
from server.media.loaded import LoadedMedia
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server
from tests.server.http.asking import CHAT, Call, chat, say
from tests.server.http.live import Live, serving
from tests.server.seeing import DOT, IMAGE, VIDEO, FakeLoader, seeing_validator, vision_of

pytestmark = pytest.mark.anyio

RENDER = "/v1/chat/completions/render"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image"}}
A_DOT = {"type": "image_url", "image_url": {"url": "data:dot"}}
CLIP = {"type": "video_url", "video_url": {"url": "data:video"}}
NOTHING = {"type": "image_url", "image_url": {"url": "data:nothing"}}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image(num_pads: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * num_pads + "<|vision_end|>"


CLIP_TEXT = "".join(
    f"<{second} seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    for second in ("0.2", "1.2")
)


def asked(content: str) -> str:
    """The prompt of one user message, thinking off."""
    head = f"<|im_start|>user\n{content}<|im_end|>\n"
    return head + "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="session")
def seeing(
    checkpoint: CheckpointText, model_config: ModelConfig, reader: ConstraintReader
) -> Validator:
    return seeing_validator(checkpoint, model_config, reader)


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
async def server(seeing: Validator, tokenizer: Tokenizer, loader: FakeLoader) -> FakeServer:
    return build_server(seeing, tokenizer, media=loader)


def will_say(server: FakeServer, tokenizer: Tokenizer, text: str = "A cat.") -> None:
    server.engine.will(*say(tokenizer, text))


def check(request: Request, tokenizer: Tokenizer, text: str, *media: LoadedMedia) -> None:
    """The prompt is that of `text`, placeholders written out, and the pictures stand in it."""
    assert list(request.prompt_ids) == tokenizer.encode(text)
    pads = {tokenizer.id_of("<|image_pad|>"), tokenizer.id_of("<|video_pad|>")}
    ids = request.prompt_ids
    starts = [
        i for i in range(1, len(ids)) if ids[i] in pads and ids[i - 1] not in pads
    ]  # nobody typed one
    pictures = [picture for item in media for picture in item.pictures]
    assert request.media == tuple(
        Media.of(start, picture.num_frames, picture.height, picture.width, picture.pixels)
        for start, picture in zip(starts, pictures, strict=True)
    )


async def test_chat(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    will_say(server, tokenizer)
    content = [part("See "), PICTURE, CLIP, part("and"), A_DOT, PICTURE]
    response = await client.post(CHAT, json=chat(content))
    assert response.status_code == 200, response.text
    (request,) = server.engine.submitted
    text = asked(f"See {image(6)}{CLIP_TEXT}and{image(1)}{image(6)}")
    check(request, tokenizer, text, IMAGE, VIDEO, DOT, IMAGE)
    assert response.json()["usage"]["prompt_tokens"] == len(request.prompt_ids)
    assert loader.num_held == 0, "the answer is out"
    # What is there twice was loaded once, and is in memory once.
    (refs,) = loader.asked
    assert [(ref.kind, ref.url, ref.path) for ref in refs] == [
        ("image", "data:image", "messages.0.content.1"),
        ("video", "data:video", "messages.0.content.2"),
        ("image", "data:dot", "messages.0.content.4"),
    ]
    assert request.media[0].pixels is request.media[4].pixels


async def test_choices_share_their_pictures(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    for _ in range(3):
        will_say(server, tokenizer)
    response = await client.post(CHAT, json=chat([PICTURE], n=3))
    assert response.status_code == 200
    first, second, third = server.engine.submitted
    assert first.media is second.media is third.media
    assert len(loader.asked) == 1
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Request)
    assert copy.media == first.media


async def test_a_prompt_without_media_is_not_held_up(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    will_say(server, tokenizer)
    response = await client.post(CHAT, json=chat("<|vision_start|><|image_pad|>"))
    assert response.status_code == 200
    assert loader.asked == []
    assert server.engine.submitted[0].media == ()


async def test_render_and_tokenize(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat([PICTURE, part("What?")])
    ids = tokenizer.encode(asked(image(6) + "What?"))
    rendered = (await client.post(RENDER, json=body)).json()
    assert rendered["token_ids"] == ids
    assert rendered["prompt"] == asked(image(1) + "What?")
    assert rendered["count"] == len(ids)
    tokens = (await client.post("/tokenize", json=body)).json()
    assert tokens["tokens"] == ids
    assert server.engine.submitted == []


async def test_messages(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """In a turn of the user and in the result of a tool."""

    def picture(url: str) -> dict[str, Any]:
        return {"type": "image", "source": {"type": "url", "url": url}}

    body = {
        "max_tokens": 10,
        "thinking": {"type": "disabled"},
        "messages": [
            {"role": "user", "content": [part("See "), picture("data:image")]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t",
                        "content": [part("It is "), picture("data:dot")],
                    }
                ],
            },
        ],
    }
    will_say(server, tokenizer)
    response = await client.post(MESSAGES, json=body)
    assert response.status_code == 200, response.text
    (request,) = server.engine.submitted
    text = tokenizer.decode(request.prompt_ids)
    assert f"See {image(6)}<|im_end|>" in text
    assert f"<tool_response>\nIt is {image(1)}\n</tool_response>" in text
    check(request, tokenizer, text, IMAGE, DOT)
    assert response.json()["usage"]["input_tokens"] == len(request.prompt_ids)
    counted = await client.post(f"{MESSAGES}/count_tokens", json=body)
    assert counted.json() == {"input_tokens": len(request.prompt_ids)}


def input_image(url: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url, "detail": "auto"}


async def test_responses_and_what_follows_on_them(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    """The image of the first turn is there in the second, which runs in the background."""
    content = [{"type": "input_text", "text": "See "}, input_image("data:image")]
    will_say(server, tokenizer, "Yes.")
    first = await client.post(
        RESPONSES, json={"input": [{"role": "user", "content": content}], **OFF}
    )
    assert first.status_code == 200, first.text
    check(server.engine.submitted[0], tokenizer, asked(f"See {image(6)}"), IMAGE)
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {
        "type": "function_call_output",
        "call_id": "c",
        "output": [input_image("data:dot")],
    }
    will_say(server, tokenizer)
    second = await client.post(
        RESPONSES,
        json={
            "input": [{"role": "user", "content": "Again"}, call, result],
            "previous_response_id": first.json()["id"],
            "background": True,
            **OFF,
        },
    )
    assert second.status_code == 200, second.text
    await server.engine.received(2)
    text = tokenizer.decode(server.engine.submitted[1].prompt_ids)
    assert f"<|im_start|>user\nSee {image(6)}<|im_end|>" in text
    assert f"<tool_response>\n{image(1)}\n</tool_response>" in text
    check(server.engine.submitted[1], tokenizer, text, IMAGE, DOT)
    assert [[ref.path for ref in refs] for refs in loader.asked] == [
        ["input.0.content.1"],
        ["previous_response_id", "input.2.output.0"],
    ]
    items = await client.get(f"{RESPONSES}/{first.json()['id']}/input_items")
    assert items.json()["data"][0]["content"][1] == content[1]


async def test_a_background_response_holds_its_pictures_until_it_ends(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    go_on = asyncio.Event()
    server.engine.will(go_on, *say(tokenizer, "A cat."))
    content = [input_image("data:image")]
    made = await client.post(
        RESPONSES, json={"input": [{"role": "user", "content": content}], "background": True}
    )
    assert made.status_code == 200, made.text
    assert loader.num_held == 1
    await server.engine.received(1)
    (picture,) = map(weakref.ref, server.engine.submitted[0].media)
    go_on.set()
    path = f"{RESPONSES}/{made.json()['id']}"
    while (await client.get(path)).json()["status"] != "completed":
        await asyncio.sleep(0)
    assert loader.num_held == 0
    server.engine.submitted.clear()
    gc.collect()
    assert picture() is None, "what is kept of it has no pixels"
    assert (await client.get(path)).json()["usage"]["output_tokens"] > 0


async def test_pictures_count_for_every_choice(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = sum(len(picture.pixels) for picture in IMAGE.pictures)
    monkeypatch.setattr(validate, "MAX_REQUEST_BYTES", 3 * num_bytes - 1)
    refused = await client.post(CHAT, json=chat([PICTURE], n=3))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


async def test_truncation_drops_the_images_of_the_turns_it_drops(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    long = {"type": "input_text", "text": "word " * 500}
    given = [
        {"role": "user", "content": [long, input_image("data:image")]},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": [long, input_image("data:dot")]},
    ]
    will_say(server, tokenizer)
    body = {"input": given, "truncation": "auto", **OFF}
    response = await client.post(RESPONSES, json=body)
    assert response.status_code == 200, response.text
    text = asked(f"{long['text']}{image(1)}")
    check(server.engine.submitted[0], tokenizer, text, DOT)


BAD: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, chat([part("x"), NOTHING]), "messages.0.content.1"),
    (RENDER, chat([NOTHING]), "messages.0.content.0"),
    ("/tokenize", chat([NOTHING]), "messages.0.content.0"),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [input_image("data:nothing")]}]},
        "input.0.content.0",
    ),
]
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, chat([{"type": "image_url"}]), "messages.0.content.0.image_url"),
    (
        CHAT,
        {"messages": [{"role": "system", "content": [PICTURE]}]},
        "messages.0.content.0",
    ),
    (
        CHAT,
        {"messages": [chat()["messages"][0], {"role": "assistant", "content": [CLIP]}]},
        "messages.1.content.0",
    ),
    (CHAT, chat([{"type": "input_audio", "input_audio": {}}]), "messages.0.content.0"),
    (
        RESPONSES,
        {"input": [{"role": "system", "content": [input_image("data:image")]}]},
        "input.0.content.0",
    ),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD + MALFORMED)
async def test_what_is_wrong_is_named(
    server: FakeServer,
    client: httpx.AsyncClient,
    loader: FakeLoader,
    path: str,
    body: dict[str, Any],
    param: str,
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}")
    assert len(loader.asked) == ((path, body, param) in BAD)
    assert server.engine.submitted == []
    assert server.lifecycle.num_in_flight == 0


async def test_repeated_media_count(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, loader: FakeLoader
) -> None:
    for parts, place in (([A_DOT] * 65, 64), ([A_DOT] * 64 + [CLIP] * 5, 68)):
        response = await client.post(CHAT, json=chat(parts))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == f"messages.0.content.{place}"
    assert loader.asked == []
    will_say(server, tokenizer)
    response = await client.post(CHAT, json=chat([A_DOT] * 64 + [CLIP] * 4))
    assert response.status_code == 200, response.text
    assert len(server.engine.submitted[0].media) == 64 + 4 * 2


async def test_a_block_is_named_as_the_client_sent_it(
    server: FakeServer, client: httpx.AsyncClient
) -> None:
    nothing = {"type": "image", "source": {"type": "url", "url": "data:nothing"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [part("x"), nothing]}
    messages = [{"role": "user", "content": [part("x"), result]}]
    response = await client.post(MESSAGES, json={"messages": messages, "max_tokens": 5})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message == "messages.0.content.1.content.1: there is nothing"


@pytest.mark.parametrize("what", ["a blind engine", "no tower"])
async def test_a_model_that_does_not_see(
    what: str,
    validator: Validator,
    tokenizer: Tokenizer,
    checkpoint: CheckpointText,
    model_config: ModelConfig,
    reader: ConstraintReader,
    loader: FakeLoader,
) -> None:
    if what == "a blind engine":
        validator = seeing_validator(checkpoint, model_config, reader)
        validator.serves_media = False
    server = build_server(validator, tokenizer, media=loader)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in (CHAT, RENDER, "/tokenize"):
            body = chat([part("x"), CLIP])
            error = (await client.post(path, json=body)).json()["error"]
            assert error["param"] == "messages.0.content.1"
            assert error["message"] == (
                "messages.0.content.1: this model takes no images or videos"
            )
    assert loader.asked == []


async def test_a_prompt_with_pictures_is_not_truncated(
    server: FakeServer, client: httpx.AsyncClient
) -> None:
    body = chat([PICTURE], truncate_prompt_tokens=5)
    response = await client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "truncate_prompt_tokens"


async def test_pads_count_for_the_window(
    seeing: Validator, client: httpx.AsyncClient, server: FakeServer, tokenizer: Tokenizer
) -> None:
    num_tokens = len(tokenizer.encode(asked(image(6))))
    whole = seeing.max_model_len
    try:
        seeing.max_model_len = num_tokens
        refused = await client.post(CHAT, json=chat([PICTURE]))
        seeing.max_model_len = num_tokens + 1
        will_say(server, tokenizer)
        fits = await client.post(CHAT, json=chat([PICTURE]))
    finally:
        seeing.max_model_len = whole
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert fits.status_code == 200


async def test_a_client_that_goes_away_while_its_images_are_loaded(
    seeing: Validator, tokenizer: Tokenizer
) -> None:
    class SlowLoader(FakeLoader):
        def __init__(self) -> None:
            super().__init__()
            self.is_inside = asyncio.Event()
            self.was_cancelled = False

        async def load(self, refs: Any) -> list[LoadedMedia]:
            self.is_inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
            raise AssertionError("nobody sets it")

    slow = SlowLoader()
    server = build_server(seeing, tokenizer, media=slow)
    call = Call(server.app, CHAT, chat([PICTURE]))
    await slow.is_inside.wait()
    server.engine.will(*say(tokenizer, "Fine."))
    other = Call(server.app, CHAT, chat())  # has no pictures, and does not wait for any
    await other.done()
    assert other.status == 200
    call.disconnect()
    await call.done()
    assert slow.was_cancelled
    assert server.lifecycle.num_in_flight == 0
    assert len(server.engine.submitted) == 1


# From here on with what really loads them.


def png(width: int, height: int, colour: str) -> str:
    """As base64."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
async def live(seeing: Validator, tokenizer: Tokenizer) -> AsyncIterator[Live]:
    real = MediaLoader(
        vision_of(tokenizer),
        access=MediaAccess(),
        pixel_limits=PixelLimits(min_image=4096, max_image=65536),
    )
    try:
        async with serving(
            build_server(seeing, tokenizer, media=real, api_keys=("sk-test",))
        ) as live:
            yield live
    finally:
        await real.close()


def check_red(request: Request, tokenizer: Tokenizer) -> None:
    """A picture of 96 by 64, all red."""
    red = b"\xff\x00\x00" * (96 * 64)
    start = request.prompt_ids.index(tokenizer.id_of("<|image_pad|>"))
    assert request.media == (Media.of(start, 1, 64, 96, red),)


async def test_the_openai_sdk(live: Live, tokenizer: Tokenizer) -> None:
    url = f"data:image/png;base64,{png(96, 64, 'red')}"
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="sk-test", max_retries=0
    ) as sdk:
        will_say(live.server, tokenizer)
        answer = await sdk.chat.completions.create(
            model="tiny",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "See "},
                        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                    ],
                }
            ],
            extra_body=OFF,
        )
        assert answer.choices[0].message.content == "A cat."
        request = live.server.engine.submitted[-1]
        assert list(request.prompt_ids) == tokenizer.encode(asked(f"See {image(6)}"))
        check_red(request, tokenizer)
        will_say(live.server, tokenizer)
        response = await sdk.responses.create(
            model="tiny",
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "See "},
                        {"type": "input_image", "image_url": url, "detail": "auto"},
                    ],
                }
            ],
            extra_body=OFF,
        )
        assert response.output_text == "A cat."
        check_red(live.server.engine.submitted[-1], tokenizer)
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(
                model="tiny",
                messages=[
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
                        ],
                    }
                ],
            )
        assert caught.value.param == "messages.0.content.0"


async def test_the_anthropic_sdk(live: Live, tokenizer: Tokenizer) -> None:
    async with anthropic.AsyncAnthropic(base_url=live.url, api_key="sk-test", max_retries=0) as sdk:
        will_say(live.server, tokenizer)
        turns: list[Any] = [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See "},
                    {
                        "type": "image",
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": png(96, 64, "red"),
                        },
                    },
                ],
            }
        ]
        thinking: Any = {"type": "disabled"}
        answer = await sdk.messages.create(
            model="tiny", max_tokens=100, messages=turns, thinking=thinking
        )
        request = live.server.engine.submitted[-1]
        check_red(request, tokenizer)
        counted = await sdk.messages.count_tokens(model="tiny", messages=turns, thinking=thinking)
    assert answer.usage.input_tokens == counted.input_tokens == len(request.prompt_ids)


async def test_an_image_of_32_mib_gets_through(
    seeing: Validator, tokenizer: Tokenizer, live: Live
) -> None:
    """With room to spare behind the pixels: what counts is the size of the request."""
    file = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(file, "BMP")
    data = file.getvalue() + bytes(32 * 2**20 - len(file.getvalue()))
    url = "data:image/bmp;base64," + base64.b64encode(data).decode()
    will_say(live.server, tokenizer)
    async with httpx.AsyncClient(base_url=live.url, trust_env=False, timeout=60) as client:
        response = await client.post(
            CHAT,
            json=chat([{"type": "image_url", "image_url": url}]),
            headers={"authorization": "Bearer sk-test"},
        )
    assert response.status_code == 200, response.text[:1000]
    check_red(live.server.engine.submitted[-1], tokenizer)
