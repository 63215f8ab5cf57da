"""Tool calls: the right one of the tools given, its values, its result, several, or none."""

import json
import random
from typing import Any

from demo import words
from demo.sample import Message, Sample, assistant, system, tool, user
from demo.tasks import sums, talk
from demo.tasks.domains import DOMAINS, HELD_OUT_NAMES, Domain, Parameter, Schema, sentence

_TRAINED_NAMES = {
    part: tuple(name for name in part.names if name not in HELD_OUT_NAMES)
    for domain in DOMAINS
    for part in (domain, *domain.parameters, *domain.optional)
}
_KEPT_NAMES = {
    part: tuple(name for name in part.names if name in HELD_OUT_NAMES) for part in _TRAINED_NAMES
}

_ALL_TRAINED_NAMES = tuple(name for names in _TRAINED_NAMES.values() for name in names)

_BEFORE = ("", "", "", "", "Please: ", "Hi! ", "Hello. ", "Hey, ", "Can you help me? ")
_AFTER = ("", "", "", "", " Thanks!", " Please.", " Thank you.")
_NONE_FITS = "I cannot do that with the tools I have."


class Tool:
    """One tool as a request sees it: a domain with names of its own."""

    def __init__(self, rng: random.Random, domain: Domain, *, held_out: bool) -> None:
        self.domain = domain
        self.kind = DOMAINS.index(domain)
        self.name = _name(rng, domain, held_out=held_out)
        taken = {self.name}
        optional = [part for part in domain.optional if rng.random() < 0.6]
        self.parts: list[tuple[Parameter, str, Schema]] = []
        for part in (*domain.parameters, *optional):
            name = _name(rng, part, held_out=held_out)
            while name in taken:
                name = _invented_name(rng)
            taken.add(name)
            self.parts.append((part, name, part.schema(rng)))
        self.description = rng.choice(domain.descriptions)
        self._described = rng.random() < 0.4
        self._extra = rng.random()

    def json(self, rng: random.Random) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for part, name, schema in self.parts:
            described = {"description": rng.choice(part.descriptions)} if self._described else {}
            titled = {"title": name.replace("_", " ").title()} if self._extra > 0.93 else {}
            properties[name] = {**schema, **described, **titled}
        required = [name for part, name, _ in self.parts if part in self.domain.parameters]
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if self._extra < 0.93:
            parameters["required"] = required
        if self._extra < 0.25:
            parameters["additionalProperties"] = False
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        if self._extra < 0.12:
            function["strict"] = True
        return {"type": "function", "function": function}


def _name(rng: random.Random, part: Domain | Parameter, *, held_out: bool) -> str:
    if held_out:
        return _unseen_name(rng, part)
    # Whoever practises must read a name, and not guess it by what it is for.
    roll = rng.random()
    if roll < 0.2:
        return _invented_name(rng)
    if roll < 0.5:
        return _plain_name(rng)
    return rng.choice(_ALL_TRAINED_NAMES if roll < 0.65 else _TRAINED_NAMES[part])


def _unseen_name(rng: random.Random, part: Domain | Parameter) -> str:
    """One that is kept for the evaluation, or one of two or three words put together."""
    if _KEPT_NAMES[part] and rng.random() < 0.7:
        return rng.choice(_KEPT_NAMES[part])
    while True:
        name = rng.choice((_plain_name, _invented_name))(rng)
        if name not in _ALL_TRAINED_NAMES and ("_" in name or not name.islower()):
            return name


def _plain_name(rng: random.Random) -> str:
    while True:
        parts = [words.plain(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
        if (name := "_".join(parts)) not in HELD_OUT_NAMES:
            return name


def _invented_name(rng: random.Random) -> str:
    parts = [words.word(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    if rng.random() < 0.25:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "_".join(parts)


def _tools(rng: random.Random, count: int, *, held_out: bool) -> list[Tool]:
    """Different tools, by domain and by name."""
    tools = {
        made.name: made
        for domain in rng.sample(DOMAINS, count)
        if (made := Tool(rng, domain, held_out=held_out))
    }
    return list(tools.values())


def _spoken(value: Any) -> str:
    return words.enumeration(value) if isinstance(value, list) else str(value)


def _request(rng: random.Random, chosen: Tool) -> tuple[str, dict[str, Any], list[Any]]:
    """What the user says, the arguments that follow from it, and the required values."""
    required = [part for part in chosen.parts if part[0] in chosen.domain.parameters]
    optional = [part for part in chosen.parts if part[0] in chosen.domain.optional]
    arguments = {name: part.value(rng, schema) for part, name, schema in required}
    values = list(arguments.values())
    text = rng.choice(chosen.domain.asks).format(*map(_spoken, values))
    if rng.random() < 0.1:
        text = _explicit(rng, chosen.name, arguments)
    for part, name, schema in optional:
        if rng.random() < 0.5:
            value = part.value(rng, schema)
            said = rng.choice(part.says).format(_spoken(value))
            ending = text[-1] if text[-1] in "?." and not said.endswith(".") else ""
            text = f"{text[: len(text) - len(ending)]}{said}{ending}"
            arguments[name] = value
    if rng.random() < 0.08:
        text = text[0].lower() + text[1:]
    return rng.choice(_BEFORE) + text + rng.choice(_AFTER), arguments, values


def _explicit(rng: random.Random, name: str, arguments: dict[str, Any]) -> str:
    pairs = words.enumeration([f"{key} {_spoken(value)}" for key, value in arguments.items()])
    return rng.choice((f"Call {name} with {pairs}.", f"Use {name} with {pairs}.", f"Run {name}: {pairs}."))  # fmt: skip


def _reasoning(purpose: str, arguments: dict[str, Any]) -> str:
    return f"{purpose}: {words.enumeration([_spoken(value) for value in arguments.values()])}."


def _call(name: str, arguments: dict[str, Any]) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _opening(rng: random.Random) -> list[Message]:
    """What may stand before the request: a system text, an earlier exchange."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append(system(rng.choice(("You are a helpful assistant.", "Be brief.", "You help with tools.", "You are an agent. Use tools when they fit."))))  # fmt: skip
    if rng.random() < 0.12:
        messages += [user("Hello!"), assistant("Hello! How can I help you?")]
    return messages


def _sample(
    task: str,
    key: str,
    messages: list[Message],
    rng: random.Random,
    tools: list[Tool],
    thinking: bool,
) -> Sample:
    kinds = {made.name: made.kind for made in tools}
    return Sample(task, key, messages, [made.json(rng) for made in tools], thinking, kinds)


def call(rng: random.Random) -> Sample:
    return one_call(rng, held_out=False)


def calls_in_turns(rng: random.Random) -> Sample:
    """Several requests one after the other, with the same tools."""
    return one_call(rng, held_out=False, num_before=rng.choice((1, 1, 2, 3)))


def choices(rng: random.Random) -> Sample:
    """Many requests, one after the other, each answered by the call that fits: choosing, densely."""
    tools = _tools(rng, rng.choice((2, 2, 3, 3, 4, 5)), held_out=False)
    messages = _opening(rng)
    for _ in range(rng.randint(3, 7)):
        exchange, _ = _exchange(rng, rng.choice(tools), thinking=False, with_result=False)
        messages += exchange
    thinking = rng.random() < 0.5
    exchange, key = _exchange(rng, rng.choice(tools), thinking=thinking, with_result=False)
    return _sample("choices", key, messages + exchange, rng, tools, thinking)


def choose(rng: random.Random) -> Sample:
    """Only what tools are for and their calls without values; many requests, each answered so."""
    tools = _tools(rng, rng.choice((2, 3, 4, 5, 6, 7)), held_out=False)
    heads = {
        made.name: "".join((f"<function={made.name}>", *(f"\n<parameter={part[1]}>" for part in made.parts)))
        for made in tools
    }  # fmt: skip
    messages = [system("\n".join(f"- {made.description}\n{heads[made.name]}" for made in tools))]
    for made in rng.choices(tools, k=rng.randint(4, 10)):
        messages += [user(_request(rng, made)[0]), assistant(f"<function={made.name}>")]
    kinds = {made.name: made.kind for made in tools}
    return Sample("choose", f"{rng.random()}", messages, kinds=kinds)


def one_call(
    rng: random.Random,
    *,
    held_out: bool,
    with_result: bool | None = None,
    num_before: int = 0,
) -> Sample:
    """One call, and in half of the samples what came back and the answer made of it.

    `num_before` requests have been served before.
    """
    tools = _tools(rng, rng.choice((1, 1, 1, 2, 2, 2, 3, 4)), held_out=held_out)
    thinking = rng.random() < 0.5
    messages = _opening(rng)
    for _ in range(num_before):
        exchange, _ = _exchange(rng, rng.choice(tools), thinking=False, with_result=True)
        messages += exchange
    if with_result is None:
        with_result = rng.random() < 0.5
    exchange, key = _exchange(rng, rng.choice(tools), thinking=thinking, with_result=with_result)
    return _sample("call", key, messages + exchange, rng, tools, thinking)


def _exchange(
    rng: random.Random, chosen: Tool, *, thinking: bool, with_result: bool
) -> tuple[list[Message], str]:
    """A request and what follows from it; and what makes it different from others."""
    text, arguments, values = _request(rng, chosen)
    reasoning = _reasoning(chosen.description, arguments) if thinking else ""
    called = assistant("", reasoning=reasoning, calls=[_call(chosen.name, arguments)])
    messages = [user(text), called]
    if with_result:
        back, said = _result(rng, chosen, values)
        reasoning = "The tool answered. I tell the user." if thinking else ""
        messages += [tool(back), assistant(said, reasoning=reasoning)]
    return messages, f"{chosen.name} {list(arguments)}"


def _result(rng: random.Random, chosen: Tool, values: list[Any]) -> tuple[str, str]:
    if rng.random() < 0.08:
        error = rng.choice(("error: not found", '{"error": "not available"}', "timeout"))
        return error, "Sorry, the tool failed."
    return chosen.domain.result(rng, [_spoken(value) for value in values])


def several_calls(rng: random.Random) -> Sample:
    """Two calls in one turn: one tool twice, or two tools."""
    tools = _tools(rng, rng.choice((1, 1, 2, 2, 3)), held_out=False)
    twice = [made for made in tools if made.domain.several]
    pairs: list[tuple[Tool, dict[str, Any], list[Any]]] = []
    if twice and (rng.random() < 0.7 or len(tools) < 2):
        chosen = rng.choice(twice)
        part, name, schema = next(p for p in chosen.parts if p[0] in chosen.domain.parameters)
        values: list[Any] = []
        while len(values) < 2:
            value = part.value(rng, schema)
            if value not in values:
                values.append(value)
        text = rng.choice(chosen.domain.several).format(*map(_spoken, values))
        pairs = [(chosen, {name: value}, [value]) for value in values]
    elif len(tools) >= 2:
        texts: list[str] = []
        for chosen in rng.sample(tools, 2):
            said, arguments, values = _request(rng, chosen)
            texts.append(said)
            pairs.append((chosen, arguments, values))
        text = rng.choice((" ", " Then: ", " And: ", " Also: ")).join(texts)
    else:
        return call(rng)
    thinking = rng.random() < 0.5
    said = " ".join(_reasoning(made.description, arguments) for made, arguments, _ in pairs)
    messages: list[Message] = [
        *_opening(rng),
        user(text),
        assistant(
            "",
            reasoning=said if thinking else "",
            calls=[_call(made.name, arguments) for made, arguments, _ in pairs],
        ),
    ]
    if rng.random() < 0.5:
        results = [_result(rng, made, values) for made, _, values in pairs]
        messages += [tool(back) for back, _ in results]
        reasoning = "The tools answered. I tell the user." if thinking else ""
        messages.append(assistant(" ".join(answer for _, answer in results), reasoning=reasoning))
    key = " ".join(f"{made.name} {list(arguments)}" for made, arguments, _ in pairs)
    return _sample("calls", key, messages, rng, tools, thinking)


def no_tool(rng: random.Random) -> Sample:
    """Nothing that is there fits: say so, or answer without."""
    tools = _tools(rng, rng.choice((1, 1, 2, 3)), held_out=False)
    have = {made.domain.names for made in tools}
    thinking = rng.random() < 0.5
    described = [made.json(rng) for made in tools]
    names = words.enumeration([made.name for made in tools])
    roll = rng.random()
    if roll < 0.5:
        # One that is not there, and that none of those that are there could replace.
        maths = set(DOMAINS[1].names) | set(DOMAINS[2].names)
        has_maths = any(set(names) & maths for names in have)
        others = [
            domain
            for domain in DOMAINS
            if domain.names not in have and not (has_maths and set(domain.names) & maths)
        ]
        missing = Tool(rng, rng.choice(others), held_out=False)
        if set(missing.domain.names) & maths:
            return no_tool(rng)
        text, _, _ = _request(rng, missing)
        if missing.name in text:
            return no_tool(rng)
        reasoning = f"I have only {names}. That does not fit." if thinking else ""
        answer = assistant(_NONE_FITS, reasoning=reasoning)
        key = f"none {text}"
        return Sample("no tool", key, [*_opening(rng), user(text), answer], described, thinking)
    make = rng.choice((talk.greeting, talk.about, talk.capital, talk.greeting))
    if roll > 0.9 and not any(set(domain.names) & set(DOMAINS[1].names + DOMAINS[2].names) for domain in (made.domain for made in tools)):  # fmt: skip
        make = sums.sums
    plain = make(rng)
    return Sample("no tool", plain.key, plain.messages, described, plain.thinking)


def anything(rng: random.Random) -> Sample:
    """A made-up tool that is called by its name, with made-up values of every type."""
    name, taken = _invented_name(rng), set[str]()
    properties: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for _ in range(rng.choice((1, 2, 2, 3))):
        key = _invented_name(rng)
        if key in taken or key == name:
            continue
        taken.add(key)
        kind = rng.choice(("string", "string", "integer", "number", "boolean", "array"))
        properties[key] = {
            "type": kind,
            **({"items": {"type": "string"}} if kind == "array" else {}),
        }
        arguments[key] = {
            "string": lambda: rng.choice((words.word, words.code, sentence, words.city))(rng).rstrip(".?"),
            "integer": lambda: rng.randint(0, 9999),
            "number": lambda: rng.randint(0, 999) + rng.choice((0.5, 0.25, 0.1)),
            "boolean": lambda: rng.random() < 0.5,
            "array": lambda: rng.sample(words.THINGS, rng.randint(1, 3)),
        }[kind]()  # fmt: skip
    described = {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Works on {rng.choice(words.THINGS)}s",
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
            },
        },
    }
    others = _tools(rng, rng.choice((0, 0, 1, 1, 2)), held_out=False)
    tools = [*(made.json(rng) for made in others), described]
    rng.shuffle(tools)
    thinking = rng.random() < 0.5
    spoken = {key: json.dumps(v) if isinstance(v, bool) else v for key, v in arguments.items()}
    messages = [
        user(_explicit(rng, name, spoken)),
        assistant(
            "",
            reasoning=_reasoning(described["function"]["description"], spoken) if thinking else "",
            calls=[_call(name, arguments)],
        ),
    ]
    kinds = {made.name: made.kind for made in others}
    return Sample("anything", f"{name} {list(arguments)}", messages, tools, thinking, kinds)
