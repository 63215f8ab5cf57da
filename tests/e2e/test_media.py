"""Images and a video through the whole server: real loader, real engine, a small random model."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from server.tokenizer import Tokenizer
from tests.checkpoints import build_checkpoint, edit_config
from tests.e2e.live import live_server
from tests.server.seeing import vision_of
from tests.server.text.tiny_tokenizer import build_tiny_tokenizer

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_checkpoint(tmp_path_factory.mktemp("seeing"), moe=False, layout="vision")
    build_tiny_tokenizer(folder)
    vision = vision_of(Tokenizer.from_dir(folder))
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    edit_config(folder, **{name: getattr(vision, name) for name in ids})
    limits = {"size": {"shortest_edge": 1024, "longest_edge": 65536}}
    (folder / "preprocessor_config.json").write_text(json.dumps(limits))
    return folder


def image(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def video() -> dict[str, Any]:
    """Two seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        for number in range(8):
            pixels = np.full((64, 64, 3), 30 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}


def body(*parts: dict[str, Any]) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    return {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": True,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_what_is_seen_changes_what_is_said(
    tmp_path: Path, model_dir: Path, num_workers: str
) -> None:
    arguments = (str(model_dir), "--api-workers", num_workers, "--device", "cpu")
    with live_server(tmp_path / "log", *arguments) as server:

        def ask(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
            response = server.http.post(CHAT, json={**body(*parts), **fields})
            assert response.status_code == 200, response.text
            return response.json()

        red, blue, again = ask(image("red")), ask(image("blue")), ask(image("red"))
        assert "images and videos: taken" in server.log
        # One token for each 8 by 8 pixels of this small tower, and what stands around them.
        assert red["usage"]["prompt_tokens"] - ask()["usage"]["prompt_tokens"] == 64 + 2
        assert said(red) == said(again) != said(blue)
        moving, counted = ask(video()), server.http.post("/tokenize", json=body(video())).json()
        assert moving["usage"]["prompt_tokens"] == counted["count"]
        both = ask(image("red"), video(), image("blue"), n=2)
        assert said(both) == said(both, 1)
        assert said(both) != said(ask(image("blue"), video(), image("red")))
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        refused = server.http.post(CHAT, json=body(broken))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "messages.0.content.0"
        assert said(ask(image("red"))) == said(red)


def test_without_its_tower_it_reads_only(tmp_path: Path, model_dir: Path) -> None:
    with live_server(tmp_path / "log", str(model_dir), "--language-model-only") as server:
        assert "images and videos: not taken" in server.log
        refused = server.http.post(CHAT, json=body(image("red")))
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == (
            "messages.0.content.0: this model takes no images or videos"
        )
        assert server.http.post(CHAT, json=body()).status_code == 200


def said(answer: dict[str, Any], choice: int = 0) -> list[int]:
    return answer["choices"][choice]["token_ids"]
