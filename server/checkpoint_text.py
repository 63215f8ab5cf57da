"""What the server reads from a checkpoint directory: tokenizer, chat template, sampling defaults.

A file that is broken raises ValueError with one readable line; one that may be missing is optional.
A sampling default out of its range is left out with a warning: a start never fails on a default.
"""

import logging
from pathlib import Path
from typing import Any, cast

import msgspec
from pydantic import ValidationError

from engine import read_config_file
from server.protocol import SamplingFields
from server.template import ChatTemplate
from server.tokenizer import Tokenizer, special_token_text

logger = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What generation_config.json says of answers, for requests that leave it out.

    `temperature` 0 is greedy.
    """

    temperature: float = 1.0
    sampling: dict[str, float] = {}  # by the request's field: what there is of `SAMPLING`
    eos_ids: frozenset[int] = frozenset()

    def of_api(self) -> "GenerationDefaults":
        """The API has defaults of its own for all but the temperature."""
        return msgspec.structs.replace(self, sampling={})


class CheckpointText(msgspec.Struct, frozen=True, kw_only=True):
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: the checkpoint has none, so it does not chat
    defaults: GenerationDefaults


def read_checkpoint_text(model_dir: Path) -> CheckpointText:
    return CheckpointText(
        tokenizer=Tokenizer.from_dir(model_dir),
        template=read_template(model_dir),
        defaults=read_generation_defaults(model_dir),
    )


def read_template(model_dir: Path) -> ChatTemplate | None:
    """Find the template in chat_template.jinja, chat_template.json or tokenizer_config.json."""
    config = read_config_file(model_dir / "tokenizer_config.json")
    source = _read_text(model_dir / "chat_template.jinja")
    if source is None:
        kept = read_config_file(model_dir / "chat_template.json").get("chat_template")
        source = _default_template(kept or config.get("chat_template"))
    if source is None:
        return None
    texts = {name: special_token_text(config.get(name)) for name in SPECIAL_TOKEN_NAMES}
    return ChatTemplate(
        source, special_tokens={name: text for name, text in texts.items() if text is not None}
    )


def read_generation_defaults(model_dir: Path) -> GenerationDefaults:
    """Read generation_config.json, if there is one."""
    config = read_config_file(model_dir / "generation_config.json")
    eos = config.get("eos_token_id")
    eos_ids = cast(list[Any], eos if isinstance(eos, list) else [] if eos is None else [eos])
    if not all(type(token_id) is int and token_id >= 0 for token_id in eos_ids):
        raise ValueError("generation_config.json: eos_token_id must hold token ids")
    given = _sampling(config)
    temperature = given.pop("temperature", 1.0)
    return GenerationDefaults(
        temperature=0.0 if config.get("do_sample") is False else temperature,
        sampling=given,
        eos_ids=frozenset(eos_ids),
    )


def _sampling(config: dict[str, Any]) -> dict[str, float]:
    """Whatever a request may say, too."""
    sampling: dict[str, float] = {}
    for name in SAMPLING:
        if config.get(name) is None:
            continue
        try:
            sampling[name] = getattr(SamplingFields.model_validate({name: config[name]}), name)
        except ValidationError:
            logger.warning("generation_config.json: %s is out of its range: ignored", name)
    return sampling


def _default_template(kept: Any) -> str | None:
    """A template as configs keep it: its text, or a list of named ones."""
    if isinstance(kept, list):
        named = cast(list[dict[str, Any]], kept)
        kept = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return kept if isinstance(kept, str) else None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not valid UTF-8") from None
