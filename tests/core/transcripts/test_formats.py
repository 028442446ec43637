from __future__ import annotations

import json

import pytest

from speechquant.core.transcripts.cues import segments_of
from speechquant.core.transcripts.formats import (
    FORMATS,
    Heard,
    as_json,
    as_srt,
    as_text,
    as_tsv,
    as_vtt,
)
from speechquant.core.transcripts.languages import NAMES, language_code, language_name
from speechquant.core.transcripts.records import Segment, Transcript, Word

TWO = Heard(
    "talk.wav",
    3725.5,
    Transcript(
        "one two & <three>",
        segments=(Segment("one two", 0.0, 1.5), Segment("& <three>", 3723.004, 3725.5)),
        language="en",
    ),
)


def test_subrip_has_numbers_and_commas() -> None:
    assert as_srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:01,500\none two\n\n2\n01:02:03,004 --> 01:02:05,500\n& <three>\n"
    )


def test_webvtt_has_points_and_escapes() -> None:
    assert as_vtt(TWO) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none two\n\n"
        "01:02:03.004 --> 01:02:05.500\n&amp; &lt;three&gt;\n"
    )


def test_a_table_has_milliseconds() -> None:
    assert as_tsv(TWO) == "start\tend\ttext\n0\t1500\tone two\n3723004\t3725500\t& <three>\n"


def test_text_has_a_line_a_segment() -> None:
    assert as_text(TWO) == "one two\n& <three>\n"
    assert as_text(Heard("a", 1.0, Transcript("one\ntwo"))) == "one two\n"


def test_text_cannot_end_a_cue_or_begin_one() -> None:
    hostile = Transcript("", segments=(Segment("a\n\n00:01 --> 00:02\tb", 0.0, 1.0),))
    for text in (as_srt(Heard("a", 1.0, hostile)), as_vtt(Heard("a", 1.0, hostile))):
        assert text.count("-->") == 1
        assert text.rstrip().count("\n\n") <= 1
    assert as_tsv(Heard("a", 1.0, hostile)).splitlines()[1].count("\t") == 2


def test_json_is_as_the_page_describes_it() -> None:
    document = json.loads(as_json(TWO))
    assert document == {
        "format": "speechquant.transcript/1",
        "path": "talk.wav",
        "text": "one two & <three>",
        "seconds": 3725.5,
        "language": "en",
        "words": [],
        "segments": [
            {"text": "one two", "start": 0.0, "end": 1.5, "decoding": None},
            {"text": "& <three>", "start": 3723.004, "end": 3725.5, "decoding": None},
        ],
    }


@pytest.mark.parametrize("name", FORMATS)
def test_silence_is_a_file_without_cues(name: str) -> None:
    silent = FORMATS[name](Heard("a", 1.0, Transcript("")))
    assert "-->" not in silent


def test_words_become_segments_that_can_be_read() -> None:
    words = tuple(Word("word", 0.5 * index, 0.5 * index + 0.4) for index in range(40))
    (first, *rest) = segments_of(Transcript("", words=words), 20.0)
    assert (first.start, first.end) == (0.0, 6.9)  # 14 words fill seven seconds
    assert first.text == " ".join(["word"] * 14)
    assert [len(one.text.split()) for one in rest] == [14, 12]


def test_a_pause_ends_a_segment() -> None:
    words = (Word("a", 0.0, 0.2), Word("b", 0.4, 0.5), Word("c", 1.3, 1.5))
    found = segments_of(Transcript("a b c", words=words), 2.0)
    assert found == (Segment("a b", 0.0, 0.5), Segment("c", 1.3, 1.5))


def test_a_text_without_times_lasts_as_long_as_its_clip() -> None:
    assert segments_of(Transcript("all"), 2.5) == (Segment("all", 0.0, 2.5),)


def test_languages_have_names_and_codes() -> None:
    assert language_code("English") == language_code(" EN ") == "en"
    assert language_code("Flemish") == "nl"
    assert language_code("klingon") == "klingon"
    assert language_name("de") == "german"
    assert language_name(None) == "english"
    assert len(NAMES) == 100
