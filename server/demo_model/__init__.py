"""The model that is there when no other is given; `demo/` is how it was made, see MODEL_CARD.md."""

from pathlib import Path

DIRECTORY = Path(__file__).parent
