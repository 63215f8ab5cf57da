"""The words that samples are made of, and words that nobody has seen before."""

import random

NAMES = """Ada Alan Alice Amir Ana Anders Anna Anton Aya Bea Ben Bo Carla Carlos Chen Clara Dana
    Daniel David Diego Dora Elena Eli Elif Emil Emma Eric Eva Farid Felix Finn Frida George
    Grace Greta Hana Hans Hugo Ida Igor Ines Iris Ivan Jack James Jana Jin Joan John Jonas
    Julia Kai Karl Kate Kenji Lars Laura Lea Lena Leo Liam Lily Lina Lisa Luca Lucy Maja Marco
    Maria Mark Marta Mary Maya Mei Mia Mila Mina Nadia Nina Nora Noah Olga Oliver Omar Oscar
    Otto Paul Pedro Peter Petra Priya Rita Rosa Ruth Sam Sara Simon Sofia Tara Theo Tim Tom
    Uma Vera Victor Wei Yara Yuki Yusuf Zoe""".split()

CAPITALS = {
    "Afghanistan": "Kabul", "Albania": "Tirana", "Algeria": "Algiers", "Argentina": "Buenos Aires",
    "Armenia": "Yerevan", "Australia": "Canberra", "Austria": "Vienna", "Azerbaijan": "Baku",
    "Bangladesh": "Dhaka", "Belarus": "Minsk", "Belgium": "Brussels", "Bolivia": "Sucre",
    "Brazil": "Brasilia", "Bulgaria": "Sofia", "Cambodia": "Phnom Penh", "Cameroon": "Yaounde",
    "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogota",
    "Costa Rica": "San Jose", "Croatia": "Zagreb", "Cuba": "Havana", "Cyprus": "Nicosia",
    "the Czech Republic": "Prague", "Denmark": "Copenhagen", "Ecuador": "Quito", "Egypt": "Cairo",
    "Estonia": "Tallinn", "Ethiopia": "Addis Ababa", "Finland": "Helsinki", "France": "Paris",
    "Georgia": "Tbilisi", "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens",
    "Guatemala": "Guatemala City", "Hungary": "Budapest", "Iceland": "Reykjavik",
    "India": "New Delhi", "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Israel": "Jerusalem", "Italy": "Rome", "Jamaica": "Kingston",
    "Japan": "Tokyo", "Jordan": "Amman", "Kazakhstan": "Astana", "Kenya": "Nairobi",
    "Kuwait": "Kuwait City", "Laos": "Vientiane", "Latvia": "Riga", "Lebanon": "Beirut",
    "Libya": "Tripoli", "Lithuania": "Vilnius", "Luxembourg": "Luxembourg", "Malaysia": "Kuala Lumpur",
    "Mali": "Bamako", "Malta": "Valletta", "Mexico": "Mexico City", "Moldova": "Chisinau",
    "Mongolia": "Ulaanbaatar", "Morocco": "Rabat", "Nepal": "Kathmandu",
    "the Netherlands": "Amsterdam", "New Zealand": "Wellington", "Nigeria": "Abuja",
    "North Korea": "Pyongyang", "Norway": "Oslo", "Oman": "Muscat", "Pakistan": "Islamabad",
    "Panama": "Panama City", "Paraguay": "Asuncion", "Peru": "Lima", "the Philippines": "Manila",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Qatar": "Doha", "Romania": "Bucharest",
    "Russia": "Moscow", "Rwanda": "Kigali", "Saudi Arabia": "Riyadh", "Senegal": "Dakar",
    "Serbia": "Belgrade", "Singapore": "Singapore", "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana", "Somalia": "Mogadishu", "South Africa": "Pretoria",
    "South Korea": "Seoul", "Spain": "Madrid", "Sudan": "Khartoum", "Sweden": "Stockholm",
    "Switzerland": "Bern", "Syria": "Damascus", "Tanzania": "Dodoma", "Thailand": "Bangkok",
    "Tunisia": "Tunis", "Turkey": "Ankara", "Uganda": "Kampala", "Ukraine": "Kyiv",
    "the United Kingdom": "London", "the United States": "Washington", "Uruguay": "Montevideo",
    "Venezuela": "Caracas", "Vietnam": "Hanoi", "Zambia": "Lusaka", "Zimbabwe": "Harare",
}  # fmt: skip

CITIES = (
    """Amsterdam Athens Baku Bangkok Barcelona Beijing Berlin Bern Bogota Boston Brussels Cairo
    Chicago Copenhagen Dakar Delhi Denver Dublin Geneva Hamburg Hanoi Havana Helsinki Istanbul
    Jakarta Kyiv Lagos Lima Lisbon London Lyon Madrid Manila Melbourne Miami Milan Montreal
    Moscow Mumbai Munich Nairobi Naples Osaka Oslo Ottawa Paris Porto Prague Quito Rabat Riga
    Rome Santiago Seattle Seoul Shanghai Sofia Stockholm Sydney Tallinn Tokyo Toronto Turin
    Vienna Vilnius Warsaw Zagreb Zurich""".split()
    + ["New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "Tel Aviv"]
)

ANIMALS = """ant bear bee bird bison camel cat cow crab crow deer dog dolphin donkey duck eagle
    elephant fish fox frog goat goose hare hawk horse lion lizard mole monkey mouse otter owl
    panda parrot pig pony rabbit rat raven seal shark sheep snail snake spider swan tiger toad
    turtle whale wolf zebra""".split()
FRUITS = """apple apricot banana cherry date fig grape guava kiwi lemon lime mango melon nectarine
    olive orange papaya peach pear pineapple plum quince raspberry strawberry""".split()
VEGETABLES = """bean beet cabbage carrot celery corn garlic leek lettuce onion pea pepper potato pumpkin
    radish spinach tomato turnip""".split()
COLOURS = (
    """black blue brown gold green grey orange pink purple red silver violet white yellow""".split()
)
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = """January February March April May June July August September October November December""".split()
THINGS = """anchor bag ball basket bell boat book bottle box bread bridge brush bucket button cake
    candle car card chair clock cloud coat coin cup desk door drum feather flag flute garden
    glass glove guitar hammer hat house island jar kettle key kite knife ladder lamp leaf
    letter map mirror moon mountain needle paper pen pencil piano pillow plate ring river road
    rope ship shoe spoon star stone sun table tent tower train tree violin wagon wheel window""".split()
ADJECTIVES = """big bright calm clean clever cold dark deep dry early fast free fresh gentle happy heavy
    high kind late light little long loud new old plain quick quiet rich round sharp short
    slow small soft strong sweet tall thin tiny warm wet wide wild wise young""".split()
VERBS = """answer bring build carry change check clean close count cover draw drop find fix follow
    give help hold keep learn leave lift look make mark move open paint plan play pull push
    read rest run send show sing sit sort start stop swim take talk test throw touch turn wait
    walk wash watch work write""".split()
PROFESSIONS = """actor artist baker carpenter cook dentist doctor driver engineer farmer gardener judge
    lawyer librarian mechanic musician nurse painter photographer pilot plumber sailor
    scientist singer tailor teacher writer""".split()
HOBBIES = """chess climbing cooking cycling dancing drawing fishing gardening hiking judo knitting
    painting photography pottery reading rowing running sailing singing skiing surfing
    swimming tennis yoga""".split()
LANGUAGES = """Arabic Chinese Danish Dutch English French German Greek Hindi Italian Japanese Korean
    Polish Portuguese Russian Spanish Swedish Turkish""".split()
CURRENCIES = "EUR USD GBP JPY CHF SEK NOK CAD AUD INR BRL CNY".split()
FOODS = """bread cheese curry dumplings falafel lasagna noodles omelette paella pancakes pasta pizza
    porridge ramen rice risotto salad soup stew sushi tacos waffles""".split()

COMMON = ANIMALS + FRUITS + VEGETABLES + COLOURS + THINGS + ADJECTIVES + VERBS

_ONSETS = """b br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sm sn sp st
    str t th tr v w y z""".split()
_VOWELS = "a e i o u ai ea ee ie oa oo ou".split()
_CODAS = ["", "", "", "b", "ck", "d", "ft", "g", "k", "l", "lt", "m", "mp", "n", "nd", "ng", "nt",
          "p", "r", "rk", "rn", "rt", "s", "sh", "sk", "st", "t", "th", "x", "z"]  # fmt: skip


def invented(rng: random.Random, syllables: int = 0) -> str:
    """A pronounceable word that most likely exists nowhere."""
    count = syllables or rng.choice((1, 2, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)
    )


def word(rng: random.Random) -> str:
    return rng.choice(COMMON) if rng.random() < 0.75 else invented(rng)


def words(rng: random.Random, count: int) -> list[str]:
    """Different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[word(rng)] = None
    return list(found)


def person(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.8 else invented(rng, 2).capitalize()


def city(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.75:
        return rng.choice(CITIES)
    return rng.choice(list(CAPITALS.values())) if roll < 0.88 else invented(rng, 2).capitalize()


def code(rng: random.Random) -> str:
    """Letters and digits as in order numbers and file names."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return letters + rng.choice(("", "-")) + digits


def enumeration(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
