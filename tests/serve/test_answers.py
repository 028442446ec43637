from __future__ import annotations

import json
from typing import Any, cast

from speechquant.core.transcripts.records import Transcript, Word
from speechquant.engines.decoding_options import GREEDY
from speechquant.serve.answers import DeltaEvents
from speechquant.serve.fields import SEGMENT, VERBOSE_JSON, Asked


def test_segments_of_words_are_counted_over_all_events() -> None:
    asked = Asked(cast(Any, None), GREEDY, VERBOSE_JSON, frozenset({SEGMENT}), streams=True)
    words = (Word("one", 0.0, 0.4), Word("two", 0.5, 0.9), Word("three", 1.0, 1.4))
    deltas = DeltaEvents(asked, 1.5)
    ids, texts = list[int](), list[str]()
    for count in (1, 1, 2, 3):
        text = " ".join(word.text for word in words[:count])
        event = deltas.event(Transcript(text, words[:count]))
        if event:
            document = json.loads(event.removeprefix("data: "))
            ids += [segment["id"] for segment in document["segments"]]
            texts.append(document["delta"])
    assert ids == [0, 1, 2] and texts == ["one", " two", " three"]
