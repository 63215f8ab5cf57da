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
# Words of all kinds, so that a word is copied whatever it is.
PLAIN = """able about above access account across action active adapter add after again agent air alarm
    all allow also amount analysis and angle any appear apply area argument array arrive ask asset
    assign atlas author auto away axis back balance band bank bar base batch beam begin behind below
    best between beyond bill bit blank block board body bonus border both bottom bound branch break
    brief buffer bulk bus business buy cache call camera cancel case catalog cause cell center chain
    chance channel chapter charge chart chat choice circle class client clip code collect column
    combine come command comment common company compare complete config confirm connect contact
    context control convert core corner cost course create credit current custom cycle daily damage
    data deal debug default define degree delay delete delivery demo deny deposit depth derive detail
    detect device dialog digit direct disk display distance dock document domain done double down
    draft drive due duty each earn edge edit effect either element else empty enable end energy
    engine enter entry equal error estimate even event every exact example expand expect expert
    export extra face fact fail fall family feature feed field file fill filter final fire first
    fit flat fleet flight float floor flow focus folder force form format forward frame friend from
    front full function fund future gain game gate gather general get goal good grade graph grid
    ground group grow guard guest half hand handle happen hard head health height helper here hidden
    history hold home hook host hour hub human icon idea image import index info inner input insert
    inside install internal into invoice issue item job join journal jump just key label large last
    launch layer layout lead level library license limit line link list listing load loan local lock
    log logic loop lower machine mail main manager manual margin market mask master match matrix max
    meal measure media member memory menu merge message meter method metric middle min minute mode
    model module monitor month more most motion movie near need network next night node none normal
    north not note number object offer office often only operation option order origin other out
    outer output outside over own owner pack package page pair panel parent part party pass past
    path pattern pause pay peak people percent perform period person phase phone phrase picture
    piece pin ping pipe pixel place plain planner plate player point policy pool port position post
    power present press preview price primary print process product profile program progress project
    prompt protect proxy public pulse purpose put quality quantity query queue quote radio raise
    random range rank rate ratio raw reach ready real reason receive recent record reduce region
    release remote remove rename render rent repair reply report request reserve reset resource
    response restore result resume return review reward role room root rotate round route router row
    rule safe sale same sample save scale scan scene school scope score screen script seal season
    seat second secret section sector secure seed segment select self sender sensor sequence series
    server service session set setup shadow shape share sheet shelf shift shop side sign signal
    since single site size skill skip sleep slot smart socket solid some sort sound source south
    space speed split spot stack staff stage stand state station status stay step stock storage
    store stream street strength string student study style subject such summary supply support
    surface switch symbol sync system tag target task team tenant term text than that them then
    theory they thing this ticket tile time tip title token tone tool top total touch track trade
    traffic transfer trend trial trip truck true trust try turn type under union unit until update
    upper usage user utility valid value vector vendor version very video view virtual visit voice
    volume vote wall want warning watch wave way web weight west what when where which while whole
    width winter wire with within without worker world yard year yield zero zone zoom""".split()

FOODS = """bread cheese curry dumplings falafel lasagna noodles omelette paella pancakes pasta pizza
    porridge ramen rice risotto salad soup stew sushi tacos waffles""".split()

COMMON = ANIMALS + FRUITS + VEGETABLES + COLOURS + THINGS + ADJECTIVES + VERBS

_ONSETS = """b br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sm sn sp st
    str t th tr v w y z""".split()
_VOWELS = "a e i o u ai ea ee ie oa oo ou".split()
_CODAS = ["", "", "", "b", "ck", "d", "ft", "g", "k", "l", "lt", "m", "mp", "n", "nd", "ng", "nt",
          "p", "r", "rk", "rn", "rt", "s", "sh", "sk", "st", "t", "th", "x", "z"]  # fmt: skip


def plain(rng: random.Random) -> str:
    """A word of any kind, or a piece of one."""
    word = rng.choice(PLAIN)
    if rng.random() < 0.3:
        other = rng.choice(PLAIN)
        word = word[: rng.randint(2, 4)] + other[-rng.randint(2, 5) :]
    return word


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
