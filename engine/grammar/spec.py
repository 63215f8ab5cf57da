"""What an answer has to look like, as it crosses the process boundary in `SamplingParams`."""

import msgspec


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A grammar over the text of an answer, and where in the answer it begins.

    `grammar` is in llguidance's notation: Lark text, or a JSON object `{"grammars": [...]}`. It
    describes text, as the parsers of the answer read text: a tag is matched by its one token and by
    its letters alike. Where only one text can follow, only the tokens that the model would write it
    in are allowed, unless it is longer than 1,024 characters or names a control token.

    Before `after_token_id` was generated nothing is constrained but what would lead past it: the
    ids that end an answer and those in `banned_before` are banned, and so is whatever would spell
    one of these tags by other tokens.
    """

    grammar: str
    after_token_id: int | None = None  # None: from the first token
    banned_before: tuple[int, ...] = ()
    bounds_numbers: bool = False  # JSON numbers stay finite and end after `MAX_NUMBER_CHARS`
