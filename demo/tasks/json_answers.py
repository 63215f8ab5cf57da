"""JSON that fits a schema shown in the prompt, filled from a sentence."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo import words
from demo.sample import Message, Sample, assistant, system, user

Value = Any
Schema = dict[str, Any]


def _string(make: Callable[[random.Random], str]) -> Callable[[random.Random], tuple[Schema, Value, str]]:  # fmt: skip
    def field(rng: random.Random) -> tuple[Schema, Value, str]:
        value = make(rng)
        return {"type": "string"}, value, value

    return field


def _integer(low: int, high: int) -> Callable[[random.Random], tuple[Schema, Value, str]]:
    def field(rng: random.Random) -> tuple[Schema, Value, str]:
        value = rng.randint(low, high)
        return {"type": "integer"}, value, str(value)

    return field


def _price(rng: random.Random) -> tuple[Schema, Value, str]:
    value = rng.randint(1, 99) + rng.choice((0.25, 0.5, 0.75, 0.99, 0.1, 0.45))
    return {"type": "number"}, value, str(value)


def _several(pool: list[str]) -> Callable[[random.Random], tuple[Schema, Value, str]]:
    def field(rng: random.Random) -> tuple[Schema, Value, str]:
        items = rng.sample(pool, rng.randint(1, 4))
        return {"type": "array", "items": {"type": "string"}}, items, words.enumeration(items)

    return field


def _choice(pool: list[str]) -> Callable[[random.Random], tuple[Schema, Value, str]]:
    def field(rng: random.Random) -> tuple[Schema, Value, str]:
        options = rng.sample(pool, rng.randint(2, 4))
        value = rng.choice(options)
        return {"type": "string", "enum": options}, value, value

    return field


# Names of a property, how its value is made, and how a sentence says it after the subject.
Kind = tuple[tuple[str, ...], Callable[[random.Random], tuple[Schema, Value, str]], tuple[str, ...]]
_FIELDS: list[Kind] = [
    (("city", "town", "home", "location", "place"), _string(words.city), ("lives in {}", "is from {}", "comes from {}")),
    (("age", "years", "age_years"), _integer(3, 99), ("is {} years old", "is {} years of age")),
    (("job", "profession", "occupation", "work"), _string(lambda r: r.choice(words.PROFESSIONS)), ("works as a {}", "is a {}")),
    (("hobby", "hobbies", "interests", "likes"), _several(words.HOBBIES), ("likes {}", "enjoys {}")),
    (("colour", "color", "favourite_colour", "favorite_color"), _choice(words.COLOURS), ("likes the colour {}", "prefers {}")),
    (("pet", "animal", "pet_kind"), _string(lambda r: r.choice(words.ANIMALS)), ("has a {}", "owns a {}")),
    (("items", "shopping", "things", "goods"), _several(words.THINGS), ("bought {}", "ordered {}", "needs {}")),
    (("price", "total", "amount", "cost"), _price, ("paid {} euros", "spent {} euros")),
    (("order_id", "code", "reference", "ticket"), _string(words.code), ("has the order number {}", "uses the code {}")),
    (("languages", "speaks"), _several(words.LANGUAGES), ("speaks {}",)),
    (("day", "weekday"), _choice(words.DAYS), ("comes on {}", "arrives on {}")),
    (("quantity", "count", "number", "num_books"), _integer(2, 500), ("has {} books", "owns {} books")),
    (("fruit", "snack"), _string(lambda r: r.choice(words.FRUITS)), ("wants a {}", "eats a {}")),
    (("food", "dish", "meal"), _string(lambda r: r.choice(words.FOODS)), ("cooks {}", "orders {}")),
]  # fmt: skip
_SUBJECT = ("name", "person", "full_name", "customer", "user", "who", "first_name")
_FLAGS = (
    (("member", "is_member"), "is a member", "is not a member"),
    (("married", "is_married"), "is married", "is not married"),
    (("active", "is_active"), "is active", "is not active"),
    (("student", "is_student"), "is a student", "is not a student"),
)  # fmt: skip
_ASKS = (
    "Answer with JSON that fits this schema:", "Reply in JSON with this schema:", "Extract the data as JSON. Schema:",
    "Fill this JSON schema:", "Return only JSON that matches this schema:", "Give me a JSON object for this schema:",
    "Convert the text to JSON. Use this schema:", "Respond with JSON according to this schema:",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """A property of a schema, and how its values are made and said."""

    name: str
    schema: Schema
    draw: Callable[[random.Random], tuple[Value, str]]  # the value, the clause that says it


def _field(rng: random.Random, kind: Kind) -> Field:
    names, make, says = kind
    schema, _, _ = make(rng)

    def draw(rng: random.Random) -> tuple[Value, str]:
        if "enum" in schema:
            value = said = rng.choice(schema["enum"])
        else:
            _, value, said = make(rng)
        return value, rng.choice(says).format(said)

    return Field(rng.choice(names), schema, draw)


def _flag(rng: random.Random) -> Field:
    names, yes, no = rng.choice(_FLAGS)

    def draw(rng: random.Random) -> tuple[Value, str]:
        value = rng.random() < 0.5
        return value, yes if value else no

    return Field(rng.choice(names), {"type": "boolean"}, draw)


def json_answer(rng: random.Random) -> Sample:
    return records(rng, 1)


def several_answers(rng: random.Random) -> Sample:
    """One schema, and records for it turn by turn."""
    return records(rng, rng.randint(2, 4))


def records(rng: random.Random, count: int) -> Sample:
    chosen = [_field(rng, kind) for kind in rng.sample(_FIELDS, rng.randint(1, 4))]
    fields = {field.name: field for field in chosen}
    if rng.random() < 0.3:
        flag = _flag(rng)
        fields[flag.name] = flag
    subject_name = rng.choice(_SUBJECT) if rng.random() < 0.85 else None
    order = [*fields, *([subject_name] if subject_name else [])]
    rng.shuffle(order)
    properties = {
        name: fields[name].schema if name in fields else {"type": "string"} for name in order
    }
    ask = f"{rng.choice(_ASKS)} {json.dumps(_whole(rng, properties))}"
    style = rng.random()
    thinking = rng.random() < 0.35
    messages: list[Message] = []
    subject = ""
    for i in range(count):
        subject = words.person(rng)
        said = {name: field.draw(rng) for name, field in fields.items()}
        answer = {name: said[name][0] if name in said else subject for name in order}
        clauses = [clause for _, clause in said.values()]
        rng.shuffle(clauses)
        text = _sentences(rng, subject, clauses)
        if i:
            messages.append(user(text))
        elif style < 0.7:
            messages.append(user(f"{ask}\n\n{text}" if style < 0.4 else f"{text}\n\n{ask}"))
        else:
            messages += [system(ask), user(text)]
        last = thinking and i == count - 1
        reasoning = f"The schema has {words.enumeration(order)}." if last else ""
        messages.append(assistant(json.dumps(answer, ensure_ascii=False), reasoning=reasoning))
    return Sample("json", f"{sorted(order)} {subject}", messages, thinking=thinking)


def _sentences(rng: random.Random, subject: str, clauses: list[str]) -> str:
    pronoun = rng.choice(("He", "She", subject))
    if len(clauses) > 1 and rng.random() < 0.5:
        first, rest = clauses[0], clauses[1:]
        text = f"{subject} {first} and {rest[0]}."
        return " ".join([text, *(f"{pronoun} {clause}." for clause in rest[1:])])
    return " ".join(
        f"{subject if i == 0 else pronoun} {clause}." for i, clause in enumerate(clauses)
    )


def _whole(rng: random.Random, properties: dict[str, Schema]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        schema["required"] = list(properties)
    if rng.random() < 0.4:
        schema["additionalProperties"] = False
    if rng.random() < 0.2:
        schema = {"title": rng.choice(("Person", "Answer", "Record", "Order")), **schema}
    return schema
