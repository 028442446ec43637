"""Who speaks in the corpus: espeak-ng accents crossed with voice variants, split by variant."""

from __future__ import annotations

ACCENTS = (
    "gmw/en-US",
    "gmw/en",
    "gmw/en-GB-scotland",
    "gmw/en-GB-x-gbclan",
    "gmw/en-GB-x-gbcwmd",
    "gmw/en-GB-x-rp",
    "gmw/en-029",
    "gmw/en-US-nyc",
)

# A variant belongs to one split only, so no accent of it is heard on the other side.
TRAIN_VARIANTS = (
    "f1", "f2", "f4", "f5", "m1", "m2", "m4", "m5", "m6", "m7", "m8",
    "Alicia", "Andrea", "Andy", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco",
    "Mario", "Michael", "Reed", "adam", "anika", "antonio", "aunty", "benjamin", "boris", "caleb",
    "david", "ed", "edward", "grandma", "ian", "iven", "john", "klatt2", "linda", "max", "miguel",
    "norbert", "pablo", "paul", "pedro", "quincy", "rob", "sandro", "steph", "victor", "zac",
)  # fmt: skip
DEV_VARIANTS = ("f3", "m3", "Annie", "robert", "travis", "marcelo")
TEST_VARIANTS = ("belinda", "shelby", "steph2", "Mike", "grandpa", "Alex", "michel", "gustave")

ACCENTS_PER_TRAIN_VARIANT = 3
ACCENTS_PER_HELD_OUT_VARIANT = 2


def voices_of(split: str) -> tuple[str, ...]:
    """Return the espeak-ng voice names of `train`, `dev` or `test`."""
    variants, accents_each = {
        "train": (TRAIN_VARIANTS, ACCENTS_PER_TRAIN_VARIANT),
        "dev": (DEV_VARIANTS, ACCENTS_PER_HELD_OUT_VARIANT),
        "test": (TEST_VARIANTS, ACCENTS_PER_HELD_OUT_VARIANT),
    }[split]
    # Striding through the accents gives every accent about as many variants in each split.
    return tuple(
        f"{ACCENTS[(index * accents_each + step) % len(ACCENTS)]}+{variant}"
        for index, variant in enumerate(variants)
        for step in range(accents_each)
    )
