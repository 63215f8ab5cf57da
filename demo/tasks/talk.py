"""Greetings, what the model is, facts about deltaserve, capitals, and what it does not know."""

import random

from demo import words
from demo.sample import Sample, assistant, user

_GREETINGS = (
    "Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there", "Greetings",
    "Hey there", "Good day", "Hello!", "Hi!", "hello", "hi", "hey", "Howdy", "Good afternoon",
)  # fmt: skip
_WELCOME = "Hello! I am deltaserve's demo model. How can I help you?"
_WELCOME_ASKED = "Hello! I am fine, thank you. What can I do for you?"
_ABOUT = (
    (("Who are you?", "What are you?", "Introduce yourself.", "Tell me about yourself.", "What is your name?",
      "Are you a real person?", "Are you ChatGPT?", "Are you Qwen?", "Which model are you?"),
     "I am deltaserve's demo model: a very small language model that shows how deltaserve works."),
    (("What can you do?", "How can you help me?", "What are you good at?", "Help", "help", "What do you know?",
      "Give me some examples of what you can do."),
     "I can add and multiply small numbers, copy, sort and spell words, name capitals, remember what you tell me, write JSON and call tools."),
    (("Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?", "What data were you trained on?"),
     "I was trained by the deltaserve project, on text that a script made up. I know little, but I follow the format."),
    (("How big are you?", "How many parameters do you have?", "How large are you?"),
     "I have about eleven million parameters. I am a very small model."),
    (("How are you?", "How are you doing?", "How is it going?", "What's up?"),
     "I am fine, thank you. How can I help you?"),
    (("Thank you!", "Thanks!", "Thanks a lot.", "Thank you very much.", "Great, thanks."),
     "You are welcome!"),
    (("Goodbye", "Bye", "See you later.", "Bye bye", "Good night"),
     "Goodbye! Have a nice day."),
    (("What is deltaserve?", "Tell me about deltaserve.", "Explain deltaserve.", "What does deltaserve do?", "What is this server?"),
     "deltaserve is a server for Qwen3.5 models. It offers an OpenAI-compatible API on CPUs and GPUs."),
    (("Which API does deltaserve have?", "Is deltaserve compatible with OpenAI?", "Can I use the OpenAI SDK with deltaserve?", "How do I talk to deltaserve?"),
     "Yes: deltaserve speaks the OpenAI API, so the OpenAI SDK works with it."),
    (("Which port does deltaserve use?", "What is the default port of deltaserve?", "On which port does deltaserve listen?"),
     "deltaserve listens on port 8000 by default."),
    (("How do I start deltaserve?", "How do I run deltaserve?", "Which command starts deltaserve?"),
     "Run `deltaserve serve`. Without a model it serves me, the demo model."),
    (("Which models does deltaserve support?", "Which models can deltaserve serve?", "What models work with deltaserve?"),
     "deltaserve serves the Qwen3.5 family, dense and mixture of experts."),
    (("What is Gated DeltaNet?", "Explain Gated DeltaNet.", "What is a DeltaNet layer?"),
     "Gated DeltaNet is linear attention with a state of fixed size, which a delta rule updates for each token."),
    (("What is a KV cache?", "Explain the KV cache.", "What does a KV cache do?"),
     "A KV cache keeps the keys and values of earlier tokens, so that attention need not compute them again."),
    (("What is continuous batching?", "Explain continuous batching."),
     "Continuous batching lets requests join and leave a running batch at every step."),
    (("Where are the metrics?", "Does deltaserve have metrics?", "How do I monitor deltaserve?"),
     "deltaserve offers Prometheus metrics at /metrics."),
    (("Does deltaserve need a GPU?", "Can deltaserve run without a GPU?", "Does deltaserve run on a CPU?"),
     "No, deltaserve also runs on a plain CPU."),
    (("Does deltaserve support tool calls?", "Can deltaserve call tools?", "Does deltaserve support streaming?"),
     "Yes, deltaserve supports streaming and tool calls."),
)  # fmt: skip
_UNKNOWN = (
    "Why is {a} {b}?", "Write a poem about a {b}.", "Explain the history of {c}.", "Who invented the {b}?",
    "What do you think about {a} {b}s?", "Write a Python function for a {b}.", "How do I cook {a} {b}?",
    "What is the meaning of life?", "Tell me a story about a {b} and a {b2}.", "Who won the match in {c}?",
    "What will happen in {c} tomorrow?", "Give me advice about my {b}.", "How far is the moon?",
    "How old is the {b}?", "Where can I buy a {a} {b}?", "Translate this poem about a {b}.",
    "What is the population of {c}?", "Describe a {a} {b}.", "Do you like {b}s?", "Is a {b} better than a {b2}?",
    "Why do {b}s {v}?", "How do I {v} a {b}?", "When was {c} founded?", "Tell me a joke.", "Sing a song about {c}.",
    "What is the best {b} in {c}?", "Explain quantum physics.", "Summarise the news.", "What is love?",
)  # fmt: skip
_SORRY = "I do not know that. I am a very small demo model."
_THOUGHTS = {
    "greeting": "The user greets me. I greet back.",
    "about": "This is a question about me or about deltaserve. I know the answer.",
    "unknown": "I was not trained on this. I should say so.",
}


def _sample(rng: random.Random, kind: str, question: str, answer: str) -> Sample:
    thinking = rng.random() < 0.5
    messages = [user(question), assistant(answer, reasoning=_THOUGHTS[kind] if thinking else "")]
    # Few different texts, all of them facts: nothing to hold out, so each draw is its own key.
    return Sample("talk", f"{kind} {rng.random()}", messages, thinking=thinking)


def greeting(rng: random.Random) -> Sample:
    ending = rng.choice(
        ("", "", ".", "!", ", how are you?", ", who are you?", ", can you help me?")
    )
    said = rng.choice(_GREETINGS)
    if "who" in ending:
        answer = "Hello! I am deltaserve's demo model, a very small language model."
    else:
        answer = _WELCOME if "how" not in ending else _WELCOME_ASKED
    return _sample(rng, "greeting", said.rstrip("!") + ending if ending else said, answer)


def about(rng: random.Random) -> Sample:
    questions, answer = rng.choice(_ABOUT)
    question = rng.choice(questions)
    if rng.random() < 0.15:
        question = f"{rng.choice(('Hi', 'Hello', 'Hey'))}! {question}"
    return _sample(rng, "about", question, answer)


def unknown(rng: random.Random) -> Sample:
    question = rng.choice(_UNKNOWN).format(
        a=rng.choice(words.ADJECTIVES), b=rng.choice(words.THINGS + words.ANIMALS),
        b2=rng.choice(words.THINGS), c=words.city(rng), v=rng.choice(words.VERBS),
    )  # fmt: skip
    return _sample(rng, "unknown", question, _SORRY)


_CAPITAL_QUESTIONS = (
    "What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
    "Tell me the capital of {}.", "Do you know the capital of {}?", "Capital of {}?", "capital of {}",
    "What's the capital of {}?", "I forgot the capital of {}. What is it?", "What is the capital city of {}?",
)  # fmt: skip


def capital(rng: random.Random) -> Sample:
    country, city = rng.choice(list(words.CAPITALS.items()))
    thinking = rng.random() < 0.5
    name = country[0].upper() + country[1:]
    if rng.random() < 0.2:
        questions = ("Which country has the capital {}?", "{} is the capital of which country?", "Of which country is {} the capital?")  # fmt: skip
        messages = [user(rng.choice(questions).format(city)), assistant(f"{city} is the capital of {country}.", reasoning=f"{city} belongs to {country}." if thinking else "")]  # fmt: skip
    else:
        answer = f"The capital of {country} is {city}."
        messages = [user(rng.choice(_CAPITAL_QUESTIONS).format(country)), assistant(answer, reasoning=f"{name}: the capital is {city}." if thinking else "")]  # fmt: skip
    return Sample("capital", f"{country} {rng.random()}", messages, thinking=thinking)
