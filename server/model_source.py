"""MODEL as the user wrote it -> a local directory that holds the checkpoint.

MODEL is a directory, a hub id, or absent (then it is the bundled demo model). From the hub only
data is fetched: weights as safetensors, JSON, tokenizer and template; never code or pickles.
Whether and how the network is used is the hub library's business (`HF_HUB_OFFLINE`, `HF_HOME`,
`HF_TOKEN`). When the hub cannot be reached, a complete copy in the hub cache is as good.
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of whichever httpx the hub uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.demo_model import DIRECTORY as DEMO_MODEL

FETCHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelNotFound(Exception):
    """MODEL leads to no checkpoint; the message is one line for the user."""


def locate_model(
    model: str | None,
    *,
    revision: str | None,
    hub_cache: Path | None = None,
) -> Path:
    """A directory with `config.json` and weights. Raises `ModelNotFound`; may download for hours.

    `hub_cache` None is the hub library's own default.
    """
    if model is None:
        return DEMO_MODEL
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.exists():
        raise ModelNotFound(f"{model} is a file: give the directory that holds config.json")
    if not HUB_ID.fullmatch(model):
        raise ModelNotFound(f"{model} is neither a directory nor a hub id (owner/name)")
    return _checked(_fetch(model, revision, hub_cache))


def _checked(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} holds no config.json: is it a checkpoint?")
    if not any(path.glob("*.safetensors")):
        raise ModelNotFound(f"{path} holds no *.safetensors: other weight formats are not read")
    return path.resolve()


def _fetch(model: str, revision: str | None, hub_cache: Path | None) -> Path:
    name = f"{model} at {revision}" if revision else model
    try:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=hub_cache, allow_patterns=list(FETCHED)
            )
        )
    except GatedRepoError:
        raise ModelNotFound(
            f"{model} needs its licence accepted on the hub, and a token in HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFound(
            f"{model} is neither a local directory nor a model on the hub (or it is private)"
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFound(f"{model} has no revision {revision} on the hub") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelNotFound(
            f"{name} is neither a local directory nor in the local hub cache, "
            "and the hub cannot be reached"
        ) from None
    except (HTTPError, OSError) as error:
        first_line = str(error).strip().splitlines()[:1]
        raise ModelNotFound(f"{name} could not be downloaded: {''.join(first_line)}") from None
