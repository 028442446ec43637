"""The pieces of a transcript that are shown one after the other, as subtitles are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechquant.core.transcripts.records import Segment, Transcript, Word

# What reads well: two lines of 42 letters, for seven seconds at most.
_MOST_LETTERS, _MOST_SECONDS = 84, 7.0
# A pause that speakers make between sentences.
_PAUSE_SECONDS = 0.8


def segments_of(transcript: Transcript, seconds: float) -> tuple[Segment, ...]:
    """Return the model's own segments, or some made of its words, or the whole clip of `seconds`.

    An empty transcript has none.
    """
    if transcript.segments:
        return transcript.segments
    if transcript.words:
        return tuple(_segment(words) for words in _lines(transcript.words))
    return (Segment(transcript.text, 0.0, seconds),) if transcript.text else ()


def _lines(words: Sequence[Word]) -> Iterator[list[Word]]:
    line: list[Word] = []
    for word in words:
        if line and not _fits(line, word):
            yield line
            line = []
        line.append(word)
    yield line


def _fits(line: Sequence[Word], word: Word) -> bool:
    letters = sum(len(one.text) + 1 for one in line) + len(word.text)
    return (
        word.start - line[-1].end < _PAUSE_SECONDS
        and word.end - line[0].start <= _MOST_SECONDS
        and letters <= _MOST_LETTERS
    )


def _segment(words: Sequence[Word]) -> Segment:
    return Segment(" ".join(word.text for word in words), words[0].start, words[-1].end)
