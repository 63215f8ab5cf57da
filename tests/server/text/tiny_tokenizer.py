"""A checkpoint's text files in small: a trained byte-level BPE with Qwen3.5's added tokens, a chat
template of the same format, and a generation config. Built in a fraction of a second, so tests need
no files and no network.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

NUM_BASE_TOKENS = 480

# In id order; True: special, so `skip_special_tokens` leaves it out of the text.
ADDED_TOKENS = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|image_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
    ("<|video_pad|>", True),
)

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is the weather in Paris today? It is sunny and warm, about twenty degrees.",
    "function parameter user assistant system tool answer question think stop start end",
    "She sells sea shells by the sea shore; the shells she sells are surely sea shells.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Voilà, c'est ça.",
    "你好，世界。今天天气很好。 こんにちは世界 Привет, мир! 😀 👩‍👩‍👧 🎉",
    '{"name": "get_weather", "parameters": {"city": {"type": "string"}}} [1, 2, 3.5, null]',
    "def main():\n    for i in range(10):\n        print(i)\n\n\nreturn None",
)

TEMPLATE = """\
{%- macro text_of(content) %}
    {%- if content is string %}{{- content }}
    {%- elif content is not none and content is iterable %}
        {%- for part in content %}
            {%- if part.type in ('image', 'video') %}
                {{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}
            {%- else %}{{- part.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if messages[0].role == 'system' %}
    {%- set opening = text_of(messages[0].content)|trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nCall one as <tool_call>\\n<function=name>\\n...after </think> <think>' }}
    {{- '\\n\\n' + opening if opening else '' }}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + opening + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(query=-1) %}
{%- for turn in turns %}
    {%- if turn.role == 'user' %}{%- set seen.query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- if seen.query < 0 %}{{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for turn in turns %}
    {%- set said = text_of(turn.content)|trim %}
    {%- if turn.role == 'user' %}
        {{- '<|im_start|>user\\n' + said + '<|im_end|>\\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- set reasons = turn.reasoning_content if turn.reasoning_content is string else '' %}
        {%- if turn.reasoning_content is not string and '</think>' in said %}
            {%- set reasons = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > seen.query %}
            {{- '<think>\\n' + reasons|trim + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said }}
        {%- for call in turn.tool_calls or [] %}
            {{- '\\n\\n' if loop.first and said else '\\n' if not loop.first else '' }}
            {{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
            {%- for key, value in call.function.arguments|items %}
                {{- '<parameter=' + key + '>\\n' }}
                {{- value if value is string else value | tojson }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif turn.role == 'tool' %}
        {{- '<|im_start|>user' if loop.previtem is undefined or loop.previtem.role != 'tool' }}
        {{- '\\n<tool_response>\\n' + said + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' }}
    {%- else %}
        {{- raise_exception('System message must be at the beginning.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {{- '\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false }}
{%- endif %}
"""


def build_tiny_tokenizer(model_dir: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json."""
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tiny_tokenizer()
    tokenizer.save(str(model_dir / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name, _ in ADDED_TOKENS}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "added_tokens_decoder": {
            str(ids[name]): {"content": name, "special": special, "normalized": False}
            for name, special in ADDED_TOKENS
        },
    }
    defaults = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 20,
        "top_p": 0.95,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
    }
    for name, value in (("tokenizer_config.json", config), ("generation_config.json", defaults)):
        (model_dir / name).write_text(json.dumps(value, indent=2), encoding="utf-8")
    (model_dir / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def train_tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=NUM_BASE_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(
        [AddedToken(name, special=special, normalized=False) for name, special in ADDED_TOKENS]
    )
    return tokenizer
