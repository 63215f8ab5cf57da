"""What tools are about: their names, their parameters, how people ask, and what tools answer.

A domain says how its tool may be called and how a request for it may be phrased. Names are drawn
from synonyms, or invented on the spot: whoever learns from this must read the names in the prompt.
Some names are kept for the evaluation (`HELD_OUT_NAMES`) and appear in no training sample.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo import words

Schema = dict[str, Any]

HELD_OUT_NAMES = frozenset(
    """obtain_weather forecast_tool meteo_report weather_service sky_conditions math_engine
    number_cruncher arithmetic_tool find_on_web seek_online internet_lookup plan_appointment
    put_in_diary diary_entry dispatch_mail mail_out post_email exchange_money swap_currency
    render_language language_swap quote_share share_price_of start_song music_box set_lamp
    lamp_control plan_trip_route guide_me reserve_seat table_keeper jot_down memo_pad town
    municipality settlement sum_expression calculation_text search_phrase phrase_to_find heading
    occasion recipient_address addressee sum_of_money origin_currency destination_currency
    passage target_tongue share_symbol melody lamp_room departure_point end_point guests_number
    memo_text""".split()
)


@dataclass(frozen=True, slots=True)
class Parameter:
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    schema: Callable[[random.Random], Schema]
    value: Callable[[random.Random, Schema], Any]
    says: tuple[str, ...] = ()  # an optional parameter: how the request mentions it


@dataclass(frozen=True, slots=True)
class Domain:
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]  # required
    asks: tuple[str, ...]  # {0} {1} stand for the parameters in order
    result: Callable[[random.Random, list[Any]], tuple[str, str]]  # what comes back, what to say
    optional: tuple[Parameter, ...] = ()
    several: tuple[str, ...] = ()  # asks for two values {0} {1} of a single parameter


def _text(make: Callable[[random.Random], str]) -> dict[str, Any]:
    return {"schema": lambda rng: {"type": "string"}, "value": lambda rng, schema: make(rng)}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {
        "schema": lambda rng: {"type": "integer"},
        "value": lambda rng, schema: rng.randint(low, high),
    }


def _number(make: Callable[[random.Random], float]) -> dict[str, Any]:
    return {"schema": lambda rng: {"type": "number"}, "value": lambda rng, schema: make(rng)}


def _one_of(pool: list[str], low: int = 2) -> dict[str, Any]:
    def schema(rng: random.Random) -> Schema:
        options = rng.sample(pool, min(len(pool), rng.randint(low, low + 2)))
        return {"type": "string", "enum": options} if rng.random() < 0.7 else {"type": "string"}

    return {
        "schema": schema,
        "value": lambda rng, schema: rng.choice(schema.get("enum", pool)),
    }


def _boolean(value: bool) -> dict[str, Any]:
    return {"schema": lambda rng: {"type": "boolean"}, "value": lambda rng, schema: value}


def _strings(pool: list[str]) -> dict[str, Any]:
    return {
        "schema": lambda rng: {"type": "array", "items": {"type": "string"}},
        "value": lambda rng, schema: rng.sample(pool, rng.randint(1, 3)),
    }


def phrase(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.4:
        return f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}s"
    if style < 0.6:
        return f"{rng.choice(words.ANIMALS)}s in {rng.choice(words.CITIES)}"
    if style < 0.8:
        return " ".join(words.words(rng, rng.randint(1, 3)))
    return f"how to {rng.choice(words.VERBS)} a {rng.choice(words.THINGS)}"


def topic(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{rng.choice(words.HOBBIES)} with {words.person(rng)}", f"meeting with {words.person(rng)}",
            f"call {words.person(rng)}", f"{rng.choice(words.THINGS)} repair", f"lunch with {words.person(rng)}",
            f"buy {rng.choice(words.FRUITS)}s", f"{rng.choice(words.LANGUAGES)} lesson", "team meeting", "dentist",
            f"{rng.choice(words.VERBS)} the {rng.choice(words.THINGS)}",
        )
    )  # fmt: skip


def sentence(rng: random.Random) -> str:
    return rng.choice(
        (
            f"The {rng.choice(words.ANIMALS)} is {rng.choice(words.ADJECTIVES)}.", f"I will come on {rng.choice(words.DAYS)}.",
            f"Where is the {rng.choice(words.THINGS)}?", "Good morning", "Thank you very much", f"I like {rng.choice(words.FOODS)}.",
            f"See you in {rng.choice(words.CITIES)}.", f"The {rng.choice(words.THINGS)} is ready.",
        )
    )  # fmt: skip


def expression(rng: random.Random) -> str:
    a, b, c = rng.randint(1, 999), rng.randint(1, 99), rng.randint(1, 20)
    style = rng.random()
    if style < 0.6:
        return f"{a} {rng.choice('+-*/')} {b}"
    return f"({a} + {b}) * {c}" if style < 0.8 else f"{a} * {b} - {c}"


def date(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.4:
        return rng.choice(words.DAYS)
    if style < 0.6:
        return rng.choice(("today", "tomorrow"))
    if style < 0.85:
        return f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)}"


def clock(rng: random.Random) -> str:
    return f"{rng.randint(6, 22)}:{rng.choice(('00', '15', '30', '45'))}"


def email(rng: random.Random) -> str:
    return f"{rng.choice(words.NAMES).lower()}@{rng.choice((*words.ANIMALS, 'example'))}.{rng.choice(('com', 'org', 'net'))}"


def symbol(rng: random.Random) -> str:
    return "".join(rng.choice("ABCDEFGHJKLMNPRSTUVXYZ") for _ in range(rng.choice((3, 3, 4))))


def amount(rng: random.Random) -> float:
    return rng.choice((rng.randint(1, 999), rng.randint(1, 99) + 0.5, rng.randint(10, 99) * 10))


_CITY = Parameter(("city", "location", "place", "city_name", "where", "town", "municipality", "settlement"), ("The city", "Name of the city", "City name, such as Paris", "Where"), **_text(words.city))  # fmt: skip
_DATE = Parameter(("date", "day", "when"), ("The day", "Date or day of the week", "When"), **_text(date))  # fmt: skip

SKIES = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear")


def _weather(rng: random.Random, values: list[Any]) -> tuple[str, str]:
    degrees, sky = rng.randint(-9, 38), rng.choice(SKIES)
    result = rng.choice(
        (
            f'{{"temperature": {degrees}, "condition": "{sky}"}}', f'{{"temp_c": {degrees}, "sky": "{sky}"}}', f"{sky}, {degrees} degrees",
            f'{{"city": "{values[0]}", "temperature": {degrees}, "condition": "{sky}"}}', f"{degrees} °C and {sky}", f"{degrees} degrees and {sky}",
        )
    )  # fmt: skip
    return result, f"It is {degrees} degrees and {sky} in {values[0]}."


def _calculated(rng: random.Random, values: list[Any]) -> tuple[str, str]:
    number = rng.choice((rng.randint(-99, 9999), rng.randint(1, 999) + 0.5))
    result = rng.choice((str(number), f'{{"result": {number}}}', f'{{"value": {number}}}'))
    return result, f"The result is {number}."


def _found(rng: random.Random, values: list[Any]) -> tuple[str, str]:
    title = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}s of {words.city(rng)}"
    return rng.choice((title, f'{{"results": ["{title}"]}}', f'[{{"title": "{title}"}}]')), f"I found this: {title}."  # fmt: skip


def _done(said: str) -> Callable[[random.Random, list[Any]], tuple[str, str]]:
    def result(rng: random.Random, values: list[Any]) -> tuple[str, str]:
        back = rng.choice(("ok", '{"status": "ok"}', '{"success": true}', "done", '{"ok": true}'))
        return back, said.format(*values)

    return result


def _valued(key: str, said: str, make: Callable[[random.Random], Any]) -> Callable[[random.Random, list[Any]], tuple[str, str]]:  # fmt: skip
    def result(rng: random.Random, values: list[Any]) -> tuple[str, str]:
        value = make(rng)
        quoted = f'"{value}"' if isinstance(value, str) else str(value)
        back = rng.choice((str(value), f'{{"{key}": {quoted}}}', f'{{"result": {quoted}}}'))
        return back, said.format(*values, value=value)

    return result


def _parameter(names: str, descriptions: tuple[str, ...], says: tuple[str, ...] = (), **kind: Any) -> Parameter:  # fmt: skip
    return Parameter(tuple(names.split()), descriptions, says=says, **kind)


_UNIT = _parameter("unit units", ("Temperature unit", "Unit"), (" in {}", ", in {}", " in {} please"), **_one_of(["celsius", "fahrenheit", "kelvin"]))  # fmt: skip

DOMAINS = (
    Domain(
        tuple("""get_weather weather get_current_weather current_weather getWeather lookup_weather
    weather_lookup check_weather fetch_weather get_forecast obtain_weather forecast_tool
    meteo_report weather_service sky_conditions""".split()),
        ("Get the weather of a city", "Current weather", "Weather for a place", "Look up the weather", "Tells the weather in a city"),
        (_CITY,),
        ("What is the weather in {0}?", "What's the weather like in {0}?", "How is the weather in {0}?", "Weather in {0}", "Is it raining in {0}?", "Do I need an umbrella in {0}?", "How warm is it in {0}?", "Tell me the weather in {0}.", "What is the temperature in {0}?", "Check the weather in {0}.", "Is it cold in {0}?"),
        _weather,
        optional=(_UNIT, Parameter(_DATE.names, _DATE.descriptions, _DATE.schema, _DATE.value, (" on {}",))),
        several=("What is the weather in {0} and in {1}?", "Compare the weather in {0} and {1}.", "How is the weather in {0} and {1}?", "Weather in {0} and {1}, please."),
    ),
    Domain(
        tuple("""calculator calculate compute eval_expression evaluate math calc do_math solve math_engine
    number_cruncher arithmetic_tool""".split()),
        ("Evaluate an arithmetic expression", "A calculator", "Compute the value of an expression", "Does arithmetic"),
        (_parameter("expression expr formula input sum_expression calculation_text", ("The expression", "Arithmetic expression", "What to compute"), **_text(expression)),),
        ("What is {0}?", "Compute {0}.", "Calculate {0}.", "Use the calculator for {0}.", "How much is {0}?", "Evaluate {0}.", "Please work out {0}."),
        _calculated,
        several=("Compute {0} and also {1}.", "What is {0}, and what is {1}?", "Calculate {0} and {1}."),
    ),
    Domain(
        tuple("""add add_numbers sum_numbers plus multiply multiply_numbers subtract divide power""".split()),
        ("Works on two numbers", "Arithmetic of two numbers", "Combine two numbers"),
        (_parameter("a x first left", ("First number", "The first number"), **_integer(0, 9999)), _parameter("b y second right", ("Second number", "The second number"), **_integer(0, 9999))),
        ("Use the tool for {0} and {1}.", "Take {0} and {1}.", "Run it on {0} and {1}.", "Please do it with {0} and {1}.", "What do you get for {0} and {1}?", "Add {0} and {1}.", "Multiply {0} by {1}.", "What is {0} plus {1}?", "What is {0} times {1}?", "What is {0} + {1}?", "What is {0} * {1}?"),
        _calculated,
    ),
    Domain(
        tuple("""search web_search search_web google find lookup query_web search_internet find_on_web
    seek_online internet_lookup""".split()),
        ("Search the web", "Web search", "Find pages on the internet", "Look something up on the web"),
        (_parameter("query q text search_query keywords search_phrase phrase_to_find", ("What to search for", "Search query", "The query"), **_text(phrase)),),
        ("Search for {0}.", "Find pages about {0}.", "Look up {0}.", "Search the web for {0}.", "Google {0}.", "Find information about {0}.", "What does the web say about {0}?"),
        _found,
        optional=(_parameter("limit num_results max_results count top_k", ("How many results", "Number of results"), (", {} results", " and give me {} results", ", at most {} results"), **_integer(1, 20)),),
        several=("Search for {0} and for {1}.", "Look up {0}, then {1}."),
    ),
    Domain(
        tuple("""create_event add_event calendar add_to_calendar schedule schedule_event new_event
    book_meeting plan_appointment put_in_diary diary_entry""".split()),
        ("Create a calendar event", "Add an event to the calendar", "Schedule something"),
        (_parameter("title name event summary subject heading occasion", ("Title of the event", "What it is"), **_text(topic)), _DATE),
        ("Schedule {0} on {1}.", "Add {0} to my calendar on {1}.", "Put {0} in my calendar for {1}.", "Create an event: {0}, {1}.", "I have {0} on {1}, add it to the calendar.", "Plan {0} for {1}."),
        _done("I added {0} on {1} to your calendar."),
        optional=(_parameter("time start_time at start", ("Start time",), (" at {}", ", at {}"), **_text(clock)), _parameter("duration_minutes duration minutes", ("Length in minutes",), (", {} minutes long", " for {} minutes"), **_integer(10, 120))),
    ),
    Domain(
        tuple("""send_email email send_mail mail write_email compose_email dispatch_mail mail_out post_email""".split()),
        ("Send an email", "Sends mail", "Write an email to someone"),
        (_parameter("to recipient address email_address recipient_address addressee", ("Receiver of the mail", "Email address"), **_text(email)), _parameter("body text message content", ("Text of the mail", "What to write"), **_text(sentence))),
        ('Send an email to {0}: "{1}"', 'Write to {0} and say "{1}"', 'Email {0} with the text "{1}"', 'Send {0} this message: "{1}"', 'Mail "{1}" to {0}'),
        _done("I sent the email to {0}."),
        optional=(_parameter("subject title", ("Subject line",), (" The subject is {}.", " Subject: {}."), **_text(topic)),),
    ),
    Domain(
        tuple(["set_timer", "timer", "start_timer", "create_timer", "set_countdown", "countdown"]),
        ("Start a timer", "Sets a timer", "Count down"),
        (_parameter("minutes duration length num_minutes", ("Minutes", "How many minutes"), **_integer(1, 120)),),
        ("Set a timer for {0} minutes.", "Start a {0} minute timer.", "Wake me in {0} minutes.", "Timer: {0} minutes.", "Remind me in {0} minutes."),
        _done("The timer is set for {0} minutes."),
        optional=(_parameter("label name title", ("Name of the timer",), (" Call it {}.", " Label it {}."), **_text(words.word)), _parameter("loud sound ring", ("Whether it rings",), (" It should ring.", " Make it ring."), **_boolean(True))),
    ),
    Domain(
        tuple("""convert_currency currency exchange convert_money currency_converter exchange_rate
    exchange_money swap_currency""".split()),
        ("Convert money between currencies", "Currency conversion", "Exchange money"),
        (_parameter("amount value sum sum_of_money", ("How much", "The amount"), **_number(amount)), _parameter("from_currency source from base origin_currency", ("Currency to convert from", "Source currency"), **_one_of(words.CURRENCIES, 3)), _parameter("to_currency target to destination_currency", ("Currency to convert to", "Target currency"), **_one_of(words.CURRENCIES, 3))),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "What are {0} {1} in {2}?", "Change {0} {1} into {2}.", "I have {0} {1}. How much {2} is that?"),
        _valued("amount", "That is {value} {2}.", lambda rng: rng.randint(1, 99999) / 10),
    ),
    Domain(
        tuple(["translate", "translate_text", "translator", "translation", "render_language", "language_swap"]),
        ("Translate text", "Translates a text into a language", "Translation"),
        (_parameter("text input sentence passage", ("The text", "What to translate"), **_text(sentence)), _parameter("target_language language to lang target target_tongue", ("Target language", "Language"), **_one_of(words.LANGUAGES, 3))),
        ('Translate "{0}" into {1}.', 'How do you say "{0}" in {1}?', 'What is "{0}" in {1}?', 'Say "{0}" in {1}.', 'Put "{0}" into {1}.'),
        _valued("translation", "In {1} it is: {value}", lambda rng: " ".join(words.invented(rng) for _ in range(rng.randint(1, 4)))),
    ),
    Domain(
        tuple("""get_stock_price stock_price stock quote get_quote ticker share_price quote_share
    share_price_of""".split()),
        ("Get the price of a stock", "Stock price", "Price of a share"),
        (_parameter("symbol ticker stock share_symbol", ("Ticker symbol", "The symbol"), **_text(symbol)),),
        ("What is the stock price of {0}?", "How much is a share of {0}?", "Price of {0}?", "What is {0} trading at?", "Get me the {0} stock price."),
        _valued("price", "{0} is at {value}.", lambda rng: rng.randint(100, 99999) / 100),
        several=("Compare the stock prices of {0} and {1}.", "What are {0} and {1} trading at?"),
    ),
    Domain(
        tuple(["play_music", "play", "play_song", "music", "player", "start_song", "music_box"]),
        ("Play music", "Plays a song", "Start a song"),
        (_parameter("song title track name melody", ("Name of the song", "The song"), **_text(lambda rng: f"{rng.choice(words.ADJECTIVES).capitalize()} {rng.choice(words.THINGS).capitalize()}")),),
        ("Play {0}.", "Put on {0}.", "I want to hear {0}.", "Start the song {0}.", "Play the song {0}, please."),
        _done("Now playing {0}."),
        optional=(_parameter("volume loudness", ("Volume from 0 to 100",), (" at volume {}", " with volume {}"), **_integer(1, 100)), _parameter("shuffle random", ("Whether to shuffle",), (" Shuffle.", " Use shuffle."), **_boolean(True))),
    ),
    Domain(
        tuple("""set_light light switch_light lights control_light smart_light set_lamp lamp_control""".split()),
        ("Control the lights", "Switch a light", "Set the light of a room"),
        (_parameter("room where place lamp_room", ("The room", "Which room"), **_one_of("kitchen bedroom bathroom office hall garage cellar attic".split(), 3)), _parameter("state power", ("on or off",), **_one_of(["on", "off"], 2))),
        ("Turn the light in the {0} {1}.", "Switch {1} the light in the {0}.", "Lights {1} in the {0}, please.", "Set the {0} light to {1}.", "Turn {1} the {0} light."),
        _done("The light in the {0} is {1}."),
        optional=(_parameter("brightness level", ("Brightness in percent",), (" at {} percent", " with brightness {}"), **_integer(1, 100)), _parameter("color colour", ("Colour of the light",), (" in {}",), **_text(lambda rng: rng.choice(words.COLOURS)))),
    ),
    Domain(
        tuple("""get_route route directions navigate get_directions distance plan_trip_route guide_me""".split()),
        ("Find the way between two places", "Route from one place to another", "Directions"),
        (_parameter("origin start from start_city source departure_point", ("Where to start", "Start"), **_text(words.city)), _parameter("destination end to end_city goal end_point", ("Where to go", "Destination"), **_text(words.city))),
        ("How do I get from {0} to {1}?", "Find a route from {0} to {1}.", "How far is it from {0} to {1}?", "Directions from {0} to {1}.", "Take me from {0} to {1}.", "I am in {0} and want to go to {1}."),
        _valued("distance_km", "From {0} to {1} it is {value} km.", lambda rng: rng.randint(10, 9000)),
        optional=(_parameter("mode by transport", ("Means of transport",), (" by {}",), **_one_of(["car", "train", "bike", "bus", "plane"], 3)),),
    ),
    Domain(
        tuple(["book_table", "reserve_table", "reservation", "make_reservation", "book_restaurant", "reserve_seat", "table_keeper"]),
        ("Book a table in a restaurant", "Reserve a table", "Restaurant reservation"),
        (_parameter("restaurant name place", ("The restaurant", "Name of the restaurant"), **_text(lambda rng: f"{rng.choice(words.ADJECTIVES).capitalize()} {rng.choice(words.ANIMALS).capitalize()}")), _parameter("guests people party_size num_people guests_number", ("Number of guests", "How many people"), **_integer(1, 12)), _DATE),
        ("Book a table at {0} for {1} people on {2}.", "Reserve a table for {1} at {0} on {2}.", "I need a table for {1} at {0}, {2}.", "Make a reservation at {0} for {1} guests on {2}."),
        _done("I booked a table for {1} at {0} on {2}."),
        optional=(_parameter("outside terrace", ("Whether to sit outside",), (" We want to sit outside.", " Outside, please."), **_boolean(True)),),
    ),
    Domain(
        tuple("""save_note note add_note create_note write_note take_note remember jot_down memo_pad""".split()),
        ("Save a note", "Write a note down", "Keeps a note"),
        (_parameter("text note content memo_text", ("Text of the note", "The note"), **_text(topic)),),
        ("Note: {0}", "Write down: {0}", "Save a note: {0}", "Make a note that says: {0}", "Take a note: {0}"),
        _done("I saved the note."),
        optional=(_parameter("tags labels", ("Tags of the note",), (" with the tags {}", ", tagged {}"), **_strings(words.COLOURS + words.THINGS)),),
    ),
    Domain(
        tuple(["get_order", "order_status", "track_order", "find_order", "lookup_order", "order"]),
        ("Look up an order", "Status of an order", "Find an order by its number"),
        (_parameter("order_id id number order_number", ("Number of the order", "The order id"), **_text(words.code)),),
        ("Where is my order {0}?", "What is the status of order {0}?", "Track order {0}.", "Look up order {0}.", "Has {0} been shipped?"),
        _valued("status", "Order {0} is {value}.", lambda rng: rng.choice(("shipped", "delayed", "delivered", "lost", "waiting"))),
        several=("What is the status of the orders {0} and {1}?", "Track {0} and {1}."),
    ),
    Domain(
        tuple(["get_user", "find_user", "user_info", "lookup_user", "get_customer", "customer_info"]),
        ("Find a user by id", "Look up a user", "Information about a user"),
        (_parameter("user_id id uid customer_id", ("Id of the user", "The id"), **_integer(1, 99999)),),
        ("Who is user {0}?", "Look up user {0}.", "Find the user with id {0}.", "Show me customer {0}.", "Get user {0}."),
        _valued("name", "User {0} is {value}.", words.person),
        several=("Look up the users {0} and {1}.", "Who are users {0} and {1}?"),
    ),
    Domain(
        tuple(["shopping_list", "add_items", "add_to_cart", "buy", "order_items", "add_to_list"]),
        ("Put things on the shopping list", "Order things", "Add items to the cart"),
        (_parameter("items things products goods", ("What to buy", "The items"), **_strings(words.FRUITS + words.VEGETABLES + words.THINGS)),),
        ("Buy {0}.", "Put {0} on the shopping list.", "I need {0}. Put it on the list.", "Order {0}.", "Add {0} to my cart."),
        _done("I put it on the list."),
    ),
    Domain(
        tuple(["define", "dictionary", "get_definition", "define_word", "lookup_word"]),
        ("Define a word", "Look a word up in the dictionary", "Meaning of a word"),
        (_parameter("word term", ("The word", "Word to define"), **_text(words.word)),),
        ("What does {0} mean?", "Define {0}.", "Look up the word {0}.", "What is the meaning of {0}?"),
        _valued("definition", "{0} means: {value}", lambda rng: f"a {rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}"),
        several=("Define {0} and {1}.", "What do {0} and {1} mean?"),
    ),
    Domain(
        tuple(["get_time", "time", "current_time", "clock", "what_time", "now"]),
        ("Current time in a city", "What time it is somewhere", "Get the time"),
        (_CITY,),
        ("What time is it in {0}?", "Time in {0}?", "Tell me the time in {0}.", "How late is it in {0}?"),
        _valued("time", "It is {value} in {0}.", clock),
        several=("What time is it in {0} and in {1}?", "Tell me the time in {0} and {1}."),
    ),
    Domain(
        tuple(["set_thermostat", "thermostat", "set_temperature", "heat", "heating"]),
        ("Set the temperature of a room", "Control the heating", "Thermostat"),
        (_parameter("degrees temperature value", ("Degrees", "Temperature in degrees"), **_number(lambda rng: rng.choice((rng.randint(15, 28), rng.randint(15, 25) + 0.5)))),),
        ("Set the temperature to {0} degrees.", "Make it {0} degrees.", "Heat to {0} degrees.", "I want {0} degrees in here."),
        _done("The temperature is set to {0} degrees."),
        optional=(_parameter("room zone", ("Which room",), (" in the {}",), **_text(lambda rng: rng.choice(("kitchen", "bedroom", "office", "hall")))),),
    ),
    Domain(
        tuple(["roll_dice", "dice", "random_number", "roll", "throw_dice"]),
        ("Roll dice", "Throws dice", "Random numbers from dice"),
        (_parameter("count num_dice dice n", ("How many dice", "Number of dice"), **_integer(1, 9)),),
        ("Roll {0} dice.", "Throw {0} dice.", "Please roll {0} dice for me."),
        _valued("total", "You rolled {value}.", lambda rng: rng.randint(1, 54)),
        optional=(_parameter("sides faces", ("Sides per die",), (" with {} sides",), **_integer(4, 20)),),
    ),
)  # fmt: skip
