"""What is said in the corpus: sentences drawn from a small grammar of English."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_ONES = "zero one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
# A capital A is the letter's name; espeak reads a lone small one as the article.
_LETTERS = "A b c d e f g h i j k l m n o p q r s t u v w x y z".split()


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


# `<name>` is replaced by one of the alternatives of that name, or by what the function of that
# name in _SPOKEN returns. Everything is spelled as it is said: no digits, no punctuation.
RULES: dict[str, list[str]] = {
    "name": _words(
        "anna peter maria james laura thomas julia david emma robert sarah michael alice henry "
        "olivia george sophie daniel lucy william grace martin helen oscar nina walter clara simon "
        "rachel arthur emily victor jane charles eva frank diana philip irene edward ruth albert "
        "martha hugo kate leon rose samuel vera andrew hannah patrick monica brian sandra kevin "
        "teresa louis amy adam susan marcus paula gregory linda stephen joan raymond betty carl"
    ),
    "surname": _words(
        "smith johnson brown miller davis wilson taylor anderson moore jackson harris thompson "
        "garcia robinson lewis walker hall allen young king wright scott green baker nelson carter "
        "mitchell roberts turner phillips campbell parker evans edwards collins stewart morris "
        "murphy cooper bailey bennett hughes foster sanders russell fisher hamilton graham wallace"
    ),
    "city": _phrases(
        "london, paris, berlin, madrid, rome, vienna, boston, chicago, dallas, denver, seattle, "
        "houston, atlanta, pittsburgh, cleveland, toronto, montreal, dublin, edinburgh, glasgow, "
        "manchester, oxford, cambridge, bristol, lisbon, athens, oslo, stockholm, helsinki, warsaw, "
        "prague, budapest, geneva, zurich, milan, venice, naples, barcelona, hamburg, munich, tokyo, "
        "seoul, sydney, melbourne, cairo, nairobi, lagos, mumbai, delhi, singapore, new york, "
        "san francisco, los angeles, las vegas, hong kong, buenos aires, mexico city, cape town"
    ),
    "country": _phrases(
        "france, germany, italy, spain, portugal, greece, norway, sweden, finland, poland, ireland, "
        "scotland, england, canada, mexico, brazil, japan, korea, china, india, egypt, kenya, nigeria, "
        "australia, austria, hungary, turkey, switzerland"
    ),
    "month": _words(
        "january february march april may june july august september october november december"
    ),
    "weekday": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "daypart": _words("morning afternoon evening night"),
    "room": _phrases(
        "kitchen, bedroom, bathroom, living room, dining room, hallway, garage, basement, office, "
        "garden, balcony, attic, cellar, nursery"
    ),
    "device": _phrases(
        "lights, lamp, heater, fan, television, radio, speaker, oven, dishwasher, washing machine, "
        "coffee machine, air conditioner, alarm, printer, camera, projector, vacuum cleaner, computer"
    ),
    "opening": _words("door window gate blinds curtains shutters"),
    "onoff": ["on", "off"],
    "colour": _words("red blue green yellow white orange purple pink brown black silver golden"),
    "food": _phrases(
        "bread, butter, cheese, milk, eggs, apples, bananas, oranges, tomatoes, potatoes, carrots, "
        "onions, rice, pasta, chicken, fish, beef, soup, salad, sugar, salt, coffee, tea, juice, "
        "water, chocolate, honey, mushrooms, lemons, strawberries, a sandwich, a pizza, ice cream"
    ),
    "weather": _words("sunny cloudy rainy windy stormy foggy snowy warm cold hot cool wet dry"),
    "music": _phrases("jazz, rock, folk, blues, country music, classical music, piano, opera, hip hop"),
    "song": _phrases(
        "the blue river, golden summer, a long way home, winter rain, dancing in the dark, "
        "silver moon, the last train, paper birds, seven bridges, morning light"
    ),
    "animal": _words(
        "dog cat horse bird rabbit mouse sheep cow pig duck goose fox wolf bear lion tiger elephant "
        "monkey snake frog turtle spider"
    ),
    "object": _phrases(
        "book, letter, ticket, passport, umbrella, wallet, jacket, camera, bicycle, suitcase, "
        "newspaper, bottle, chair, table, pencil, paper, blanket, mirror, hammer, ladder, basket, "
        "candle, carpet, guitar, violin, telephone, glasses, gloves, shoes, hat, key, box"
    ),
    "adjective": _words(
        "big small old new quiet loud heavy light empty broken clean dirty strange beautiful cheap "
        "expensive simple difficult gentle sharp smooth narrow round square bright useful famous"
    ),
    "adverb": _words("slowly quickly quietly carefully often never always again soon later together"),
    "person": _phrases(
        "my mother, my father, my sister, my brother, my uncle, my aunt, the teacher, the doctor, "
        "the driver, the farmer, the captain, the nurse, the lawyer, the baker, the engineer, "
        "the manager, the children, our neighbour, the students, the guests, <name>, <name> <surname>"
    ),
    "pastverb": _phrases(
        "found, lost, bought, sold, carried, opened, closed, painted, repaired, forgot, broke, hid, "
        "watched, borrowed, cleaned, dropped, noticed, described, wanted, brought back, picked up"
    ),
    "where": _phrases(
        "near the river, behind the house, under the bridge, beside the station, at the market, "
        "in the forest, on the mountain, across the street, by the lake, in the library, "
        "at the airport, next to the church, inside the museum, on the beach, along the road, "
        "above the shop, between the trees, at the harbour, outside the theatre, in the village"
    ),
    "when": _phrases(
        "yesterday, today, last week, last night, this <daypart>, on <weekday>, in <month>, "
        "an hour ago, before breakfast, after lunch, during the holidays, two days ago, at midnight, "
        "at noon, every <weekday>, in the <daypart>, at <clock>"
    ),
    "future": _phrases(
        "tomorrow, tonight, next week, next <weekday>, on <date>, at <clock>, tomorrow <daypart>, "
        "in <small> minutes, in <small> hours, this weekend, on <weekday> at <clock>"
    ),
    "unit": _words("minutes hours seconds days weeks miles metres pounds dollars degrees percent"),
    "please": ["please", "could you please", "can you", "would you", "i want you to", "now"],
    "activity": _phrases(
        "go swimming, play tennis, read a story, cook dinner, visit <city>, watch a film, "
        "clean the <room>, write to <name>, learn to drive, walk the dog, take a photograph, "
        "call <name>, bake a cake, plant some flowers, feed the <animal>, meet <name> <where>"
    ),
    "command": _phrases(
        "turn <onoff> the <device> in the <room>, switch the <room> <device> <onoff>, "
        "turn the volume up to <small>, open the <room> <opening>, close the <opening> in the <room>, "
        "lock the <opening>, set the <device> to <small> <unit>, make the <room> lights <colour>, "
        "play some <music> in the <room>, play <song> by <name> <surname>, stop the music, "
        "pause the <device>, skip this song, set a timer for <small> <unit>, "
        "set an alarm for <clock> on <weekday>, wake me up at <clock> tomorrow <daypart>, "
        "remind me to <activity> <future>, add <food> and <food> to my shopping list, "
        "remove <food> from the list, send a message to <name> <surname>, call <name> at work, "
        "call the number <digits>, show me the way to <city>, take me home, "
        "book a table for <small> at <clock>, book a flight from <city> to <city> on <date>, "
        "cancel my meeting with <name>, move the meeting to <weekday> at <clock>, "
        "read my last message, check the weather in <city>, lower the <room> temperature by <small> degrees, "
        "start the <device> in <small> minutes, charge <small> dollars to my account, "
        "spell <spelled>, type the word <spelled>, enter <digits>, delete the file, save and exit, "
        "repeat the last line, erase <letters>, rub out <small>, help me, yes, no, go back, cancel that"
    ),
    "question": _phrases(
        "what time is it in <city>, what is the capital of <country>, how far is it to <city>, "
        "what is the weather like in <country> <when>, will it be <weather> <future>, "
        "how much does the <object> cost, where did <person> leave the <object>, "
        "who <pastverb> the <colour> <object>, when does the train to <city> leave, "
        "is there a <animal> in the <room>, how many <animal> pictures do you have, "
        "what is <small> plus <small>, what is <number> minus <small>, do you like <food>, "
        "have you ever been to <country>, why is the <object> so <adjective>, "
        "which of these is the <adjective> one, how old is <name> <surname>, "
        "what happened <where> <when>, could you tell me where the <object> is, "
        "did you hear that <adjective> noise, who is coming to dinner <future>, "
        "does the bus stop <where>, can we <activity> <future>, what did <person> say <when>"
    ),
    "statement": _phrases(
        "<person> <pastverb> the <adjective> <object> <where>, "
        "<person> <pastverb> <small> <adjective> things <when>, "
        "the <animal> sat <adverb> <where>, the <colour> <object> belongs to <person>, "
        "it was <weather> in <city> <when>, the weather in <country> is <weather> and <weather>, "
        "<name> <surname> lives at <small> <surname> street in <city>, "
        "my telephone number is <digits>, my birthday is on <date>, the year was <year>, "
        "the train leaves at <clock> from platform <small>, the population is about <number>, "
        "the temperature is <small> degrees, i would like <food> and <food>, "
        "we will <activity> <future>, they walked <adverb> <where> <when>, "
        "<person> and <person> met <where>, the answer is <number>, my name is <spelled>, "
        "the code is <letters> <digits>, the room was <adjective> and <adjective>, "
        "every <animal> needs <food>, nobody <pastverb> the <object>, "
        "i think <person> <pastverb> it <when>, there are <small> <colour> houses <where>, "
        "please leave the <object> <where>, my address is <small> <city> road"
    ),
    "chat": _phrases(
        "good <daypart> how are you <when>, hello my name is <name>, nice to meet you <name>, "
        "thank you very much for the <object>, i am sorry i am late, see you <future>, "
        "have a good <daypart>, that is a <adjective> idea, i do not know what to say, "
        "well that was a <adjective> day, i am really tired <when>, let us <activity> <future>, "
        "happy birthday <name>, how was your trip to <city>, i have not seen <person> for a while, "
        "never mind we can <activity> later, you are welcome, what a <adjective> <animal>, "
        "do not worry about the <object>, i hope you feel better soon, congratulations to <person>, "
        "excuse me is this the road to <city>, just a moment please, that sounds <adjective> to me"
    ),
    "sentence": [
        "<command>", "<command>", "<please> <command>", "<command> and <command>",
        "<question>", "<question>", "<statement>", "<statement>", "<statement> and <statement>",
        "<chat>", "<chat> and <question>", "<digits>", "<date>", "<spelled>",
        "<name> <surname> <date>", "<statement> but <statement>",
    ],
}  # fmt: skip


def spoken_number(value: int) -> str:
    """Return 0 to 999,999 in words."""
    if value < 10:
        return _ONES[value]
    if value < 20:
        return _TEENS[value - 10]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")
    divisor, unit = (1000, "thousand") if value >= 1000 else (100, "hundred")
    head, rest = divmod(value, divisor)
    return f"{spoken_number(head)} {unit}" + (f" {spoken_number(rest)}" if rest else "")


def _ordinal(day: int) -> str:
    if day <= 20:
        return _ORDINALS[day - 1]
    if day == 30:
        return "thirtieth"
    return f"{'twenty' if day < 30 else 'thirty'} {_ORDINALS[day % 10 - 1]}"


def _year(rng: random.Random) -> str:
    century, rest = rng.choice(["eighteen", "nineteen", "twenty"]), rng.randrange(10, 100)
    return f"{century} {spoken_number(rest)}"


def _date(rng: random.Random) -> str:
    month, day = rng.choice(RULES["month"]), _ordinal(rng.randint(1, 31))
    plain = rng.choice([f"{month} {day}", f"{month} the {day}", f"the {day} of {month}"])
    return f"{plain} {_year(rng)}" if rng.random() < 0.4 else plain


def _clock(rng: random.Random) -> str:
    hour, minute = spoken_number(rng.randint(1, 12)), rng.randrange(60)
    if minute < 5:
        return f"{hour} o'clock"
    if minute < 10:
        return f"{hour} oh {spoken_number(minute)}"
    if rng.random() < 0.2:
        return rng.choice([f"half past {hour}", f"quarter to {hour}", f"quarter past {hour}"])
    half_day = rng.choice(["", "", " A m", " p m"])
    return f"{hour} {spoken_number(minute)}{half_day}"


def _digits(rng: random.Random) -> str:
    return " ".join(rng.choice([*_ONES, *_ONES, "oh"]) for _ in range(rng.randint(3, 8)))


def _letters(rng: random.Random) -> str:
    return " ".join(rng.choices(_LETTERS, k=rng.randint(2, 5)))


def _spelled(rng: random.Random) -> str:
    word = rng.choice([*RULES["name"], *RULES["surname"], *RULES["animal"]])
    letters = " ".join(word).replace("a", "A")
    return f"{word} {letters}" if rng.random() < 0.3 else letters


_SPOKEN: dict[str, Callable[[random.Random], str]] = {
    "small": lambda rng: spoken_number(rng.randint(2, 99)),
    "number": lambda rng: spoken_number(rng.randrange(10 ** rng.randint(2, 6))),
    "year": _year,
    "date": _date,
    "clock": _clock,
    "digits": _digits,
    "letters": _letters,
    "spelled": _spelled,
}
_SLOT = re.compile(r"<(\w+)>")


def expand(template: str, rng: random.Random) -> str:
    """Return `template` with every `<slot>` replaced until none is left."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in _SPOKEN:
            return _SPOKEN[name](rng)
        return expand(rng.choice(RULES[name]), rng)

    return _SLOT.sub(fill, template)


def sentence(rng: random.Random) -> str:
    """Return one sentence in small letters, spaces and apostrophes; a capital A is spelled out."""
    return expand("<sentence>", rng)


def transcript_of(spoken: str) -> str:
    """Return what a recognizer should write for a sentence of this grammar."""
    return spoken.lower()


def vocabulary() -> frozenset[str]:
    """Return every word that the grammar can say."""
    rules = (word for options in RULES.values() for option in options for word in option.split())
    spoken = [*_ONES, *_TEENS, *_TENS, *_ORDINALS, *_LETTERS]
    glue = "thirtieth hundred thousand oh o'clock half past quarter to the of".split()
    said = (word for word in [*rules, *spoken, *glue] if not _SLOT.search(word))
    return frozenset(transcript_of(word) for word in said)
