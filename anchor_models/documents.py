"""Documents made up on the spot: filler sentences, with needles to be found again.

A needle is one sentence that gives a number to a two-word key; a question at the end asks for it.
Everything follows from the seed, nothing is copied from a book, and the keys for evaluation are
built from words that training never uses.
"""

import random
from dataclasses import dataclass

NAMES = """Alma Bruno Celia Dario Edith Felix Greta Hugo Irene Jonas Karla Leopold Mina Nestor
Olive Percy Quinn Rosa Stefan Thea Ulric Vera Walter Xenia Yorick Zelda Amos Beatrix Conrad
Dora""".split()
PEOPLE = """baker captain doctor farmer gardener judge merchant miller painter pilot porter sailor
scholar shepherd soldier tailor teacher weaver widow clerk cook driver guard hunter nurse
priest printer servant singer smith""".split()
THINGS = """basket bell blanket book bottle box candle cart chair clock coat cup door drum fence
gate glass hammer hat key knife ladder lamp letter map mirror net picture plate purse ring
rope saddle sail sword table tower wagon wall wheel window boat bridge chest stone""".split()
PLACES = """bank barn bay castle chapel church city coast corner cottage court farm field forest
garden hall harbour hill house inn island kitchen lake market meadow mill mountain orchard
park path port river road school shop shore square stable station street tavern theatre town
valley village wood yard""".split()
QUALITIES = """bright broken busy clean cold curious dark deep dry early empty fair famous fine
gentle grey heavy high honest large late light little long loud low narrow new old open
pleasant poor proud quick rich rough round sharp short simple slow small soft steep strange
strong sweet tall thick thin warm weary wet white wide wild wise young""".split()
ACTIONS = """bought carried cleaned described drew examined fetched found hid kept left lifted lost
mended moved needed noticed painted praised remembered repaired saw sold took wanted watched
borrowed brought chose counted""".split()
TIMES = """in the morning|before dinner|after the rain|at noon|late at night|in the spring|during
the war|that evening|a year later|on the third day|at last|without a word|for the first time|in
spite of the cold|by the light of the moon|with great care|as usual|in the winter""".replace(
    "\n", " "
).split("|")
OPINIONS = """nobody knew why|it was hard to say|there was nothing to be done|the reason was
plain|all of them laughed|it did not matter|the wind had turned|so the story goes|few people
believed it|the matter was soon forgotten|everything was quiet|that was the custom""".replace(
    "\n", " "
).split("|")

# Keys: the two lists are split, and the held-out parts are for evaluation only.
KEY_FIRST = """amber ancient arctic autumn bitter blue brass brave brown calm cedar civil clever
coral copper crimson crystal dusty eager eastern elder emerald fancy fatal fertile fierce foreign
frozen gallant giant gilded golden grand green hidden hollow humble idle inner iron ivory jolly
kindly lazy leather linen lively lonely lucky marble mellow merry middle mighty misty modern
mossy naked nimble noble northern olive orange outer pale paper patient perfect plain polar
purple quiet rapid rare royal rural rusty sacred salty scarlet secret shady silent silver
sober solid southern spare stately steady sunny tender thirsty tidy timid upper urban velvet
violet vivid wealthy western wicked wooden yellow""".split()
KEY_SECOND = """acorn anchor apple arrow badger banner barrel beacon beaver bishop blossom bucket
button cabin camel canal candle canyon carpet cherry circle cliff cloud comet cradle cricket crown
dagger desert dragon eagle engine falcon feather ferry finger flag flute forest fountain fox
garden garland goose grove hammer harvest hawk hazel helmet heron horse island jewel jungle kettle
ladder lantern lemon lily lion maple marsh meadow melon mirror monkey needle nest oak ocean onion
orchid otter owl palace parrot pearl pepper pigeon pillow planet plough pony prairie prince pump
quarry rabbit raven ribbon robin rocket rose sail salmon shield sparrow spider spoon squirrel
statue stove sugar summit swan temple thistle thunder ticket tiger tulip tunnel turtle valley
violin wagon walnut whale willow wolf""".split()
HELD_OUT = 20  # the last words of each list

STATEMENTS = (
    " The number of {key} is {value}.",
    " Remember that the number of {key} is {value}.",
    " It is written that the number of {key} is {value}.",
    " As you know, the number of {key} is {value}.",
)
QUESTION = "\nQuestion: what is the number of {key}? Answer: the number of {key} is {value}."


@dataclass(frozen=True)
class Needle:
    """A fact to be found: key, value, and where its sentence starts (a share of the filler)."""

    key: str
    value: str
    depth: float


@dataclass(frozen=True)
class Document:
    """A text with its needles; `text` ends right before the answer to the last question.

    Attributes:
        text: filler with the needles in it, then the question, up to and including "is ".
        answer: the value asked for, digits only.
        needles: all needles, in the order of their depth.
        asked: index of the needle asked for.
    """

    text: str
    answer: str
    needles: tuple[Needle, ...]
    asked: int


def filler_sentence(rng: random.Random) -> str:
    """One English sentence about nothing in particular."""
    pick = rng.choice

    def person() -> str:
        return pick((pick(NAMES), f"the {pick(QUALITIES)} {pick(PEOPLE)}", f"the {pick(PEOPLE)}"))

    def thing() -> str:
        return pick((f"the {pick(THINGS)}", f"a {pick(QUALITIES)} {pick(THINGS)}"))

    def place() -> str:
        return pick((f"the {pick(PLACES)}", f"the {pick(QUALITIES)} {pick(PLACES)}"))

    frame = rng.randrange(8)
    if frame == 0:
        text = f"{person()} {pick(ACTIONS)} {thing()} near {place()} {pick(TIMES)}"
    elif frame == 1:
        text = f"{pick(TIMES)}, {person()} {pick(ACTIONS)} {thing()}"
    elif frame == 2:
        text = f"there was {thing()} in {place()}, and {pick(OPINIONS)}"
    elif frame == 3:
        text = f"{person()} went to {place()} with {person()}, but {pick(OPINIONS)}"
    elif frame == 4:
        text = f"the {pick(PLACES)} was {pick(QUALITIES)} and the {pick(PLACES)} was not"
    elif frame == 5:
        text = f'"where is {thing()}?" asked {person()}, who stood by {place()}'
    elif frame == 6:
        text = f"when {person()} {pick(ACTIONS)} {thing()}, {person()} {pick(ACTIONS)} {thing()}"
    else:
        text = f"from {place()} to {place()} it is a {pick(QUALITIES)} way, and {pick(OPINIONS)}"
    start = 1 if text[0] == '"' else 0
    return text[:start] + text[start].upper() + text[start + 1 :] + "."


def filler(n_characters: int, rng: random.Random) -> str:
    """Sentences in paragraphs, at least `n_characters` long."""
    parts, length = [], 0
    while length < n_characters:
        parts.append(filler_sentence(rng) + ("\n" if rng.random() < 0.15 else " "))
        length += len(parts[-1])
    return "".join(parts).rstrip()


def make_keys(count: int, rng: random.Random, held_out: bool = True) -> list[str]:
    """Distinct two-word keys; `held_out` chooses the words that training never uses."""
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    first, second = KEY_FIRST[part], KEY_SECOND[part]
    if not 1 <= count <= len(first) * len(second):
        raise ValueError(f"count must be in 1..{len(first) * len(second)}, got {count}")
    pairs = rng.sample(range(len(first) * len(second)), count)
    return [f"{first[pair // len(second)]} {second[pair % len(second)]}" for pair in pairs]


def make_value(rng: random.Random, digits: int = 5) -> str:
    """A number of that many digits, first digit not zero."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def make_document(
    n_characters: int,
    seed: int = 0,
    *,
    depths: tuple[float, ...] = (0.5,),
    asked: int = 0,
    body: str | None = None,
    held_out: bool = True,
) -> Document:
    """A text with one needle at each of the given depths, and a question about one of them.

    Args:
        n_characters: length of the filler, at least 0; about 4 characters are a token of the
            bundled model.
        seed: everything drawn follows from it.
        depths: where the needles stand, as shares of the filler, in [0, 1].
        asked: index into `depths` of the needle that the question is about.
        body: filler to use instead of made-up sentences; cut to `n_characters`.
        held_out: build keys from words that training never uses.

    Returns:
        The `Document`.

    Raises:
        ValueError: `n_characters`, a depth or `asked` is out of range, or `body` is shorter than
            `n_characters`.
    """
    if n_characters < 0:
        raise ValueError(f"n_characters must be at least 0, got {n_characters}")
    if not depths or any(not 0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be one or more numbers in [0, 1], got {depths}")
    if not 0 <= asked < len(depths):
        raise ValueError(f"asked must be in 0..{len(depths) - 1}, got {asked}")
    if body is not None and len(body) < n_characters:
        raise ValueError(f"body must have at least {n_characters} characters, got {len(body)}")
    rng = random.Random(seed)
    text = filler(n_characters, rng) if body is None else body[:n_characters]
    keys = make_keys(len(depths), rng, held_out)
    needles = [
        Needle(key, make_value(rng), depth) for key, depth in zip(keys, depths, strict=True)
    ]
    parts, done = [], 0
    for needle in sorted(needles, key=lambda needle: needle.depth):
        at = _sentence_end(text, round(needle.depth * len(text)))
        statement = rng.choice(STATEMENTS).format(key=needle.key, value=needle.value)
        parts += [text[done : max(at, done)], statement]
        done = max(at, done)
    wanted = needles[asked]
    question = QUESTION.format(key=wanted.key, value="\0").split("\0")[0]
    in_order = tuple(sorted(needles, key=lambda needle: needle.depth))
    return Document(
        "".join([*parts, text[done:], question]), wanted.value, in_order, in_order.index(wanted)
    )


def make_prompt(
    tokenizer,
    n_tokens: int,
    seed: int = 0,
    *,
    depths: tuple[float, ...] = (0.5,),
    asked: int = 0,
    held_out: bool = True,
) -> tuple[list[int], Document]:
    """A document cut to measure: <|bos|>, filler with needles, question, `n_tokens` in all.

    Args:
        tokenizer: a transformers tokenizer. One without a <|bos|> gives a prompt without it.
        n_tokens: length of the prompt in tokens; the answer comes after it.
        seed, depths, asked, held_out: as in `make_document`.

    Returns:
        (token ids, the `Document` they were made from). The ids are exactly `n_tokens` unless
        filler of that very length does not exist, and then up to 16 fewer, never more.

    Raises:
        TypeError: `tokenizer` is not a tokenizer.
        ValueError: `n_tokens` is too few for the needles and the question, or see `make_document`.
    """
    if not hasattr(tokenizer, "bos_token_id"):
        raise TypeError(
            f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}"
        )
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def attempt(n_characters: int) -> tuple[list[int], Document]:
        document = make_document(
            n_characters, seed, depths=depths, asked=asked, body=body, held_out=held_out
        )
        ids = tokenizer.encode(document.text, add_special_tokens=False)
        return [*start, *ids], document

    body = filler(8 * n_tokens, random.Random(seed))  # no English text has 8 characters a token
    least, most = 0, len(body)
    ids, document = attempt(0)
    if len(ids) > n_tokens:
        raise ValueError(f"n_tokens must be at least {len(ids)} for these needles, got {n_tokens}")
    while most - least > 1 and len(ids) < n_tokens:
        middle = (least + most) // 2
        longer, found = attempt(middle)
        if len(longer) <= n_tokens:
            least, ids, document = middle, longer, found
        else:
            most = middle
    return ids, document


def _sentence_end(text: str, position: int) -> int:
    """The first place at or after `position` that follows a full stop; else the end."""
    if position == 0:
        return 0
    found = text.find(". ", max(position - 1, 0))
    return len(text) if found < 0 else found + 1
