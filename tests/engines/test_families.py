from __future__ import annotations

import pytest

from speechquant.core.artifacts import SPECS
from speechquant.core.bundles import Bundle
from speechquant.core.errors import BundleError
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.ctc.recognizer import open_ctc_recognizer
from speechquant.engines.families import FAMILIES, family_of
from speechquant.engines.session import open_session
from speechquant.engines.whisper.recognizer import open_whisper_recognizer


def test_every_task_that_can_be_read_has_one_family() -> None:
    assert [family.task for family in FAMILIES] == list(SPECS)


def test_a_family_is_found_by_task(tiny_bundle: Bundle, whisper_bundle: Bundle) -> None:
    ctc, whisper = family_of(tiny_bundle), family_of(whisper_bundle)
    assert (ctc.task, whisper.task) == ("ctc", "seq2seq")
    assert ctc.trial_decoding is None
    assert whisper.trial_decoding is not None and whisper.trial_decoding.temperatures == (0.0,)
    options = BuildOptions("tensorrt")
    assert list(ctc.graphs_to_build(tiny_bundle, options)) == ["model"]
    assert list(whisper.graphs_to_build(whisper_bundle, options)) == list(whisper_bundle.graphs)
    for family, bundle in ((ctc, tiny_bundle), (whisper, whisper_bundle)):
        with family.probe(bundle, 1, attention=False):
            pass


def test_what_is_for_one_family_refuses_the_other(
    tiny_bundle: Bundle, whisper_bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match=r"task seq2seq, which .* give one of a ctc model"):
        open_ctc_recognizer(whisper_bundle)
    with pytest.raises(BundleError, match=r"task seq2seq, which .* give one of a ctc model"):
        open_session(whisper_bundle)
    with pytest.raises(BundleError, match=r"task ctc, which .* give one of a seq2seq model"):
        open_whisper_recognizer(tiny_bundle)
