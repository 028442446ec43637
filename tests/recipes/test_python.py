"""The steps from Python, as docs/architecture.md shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.core.scales import SCALES_FILE, read_scales
from speechquant.engines import open_recognizer
from speechquant.recipes.data import ClipList

ROOT = Path(__file__).parent.parent.parent
RATE_HZ = 16_000


@pytest.fixture
def manifest(tiny_bundle: Bundle, tmp_path: Path, noise: NDArray[np.float32]) -> Path:
    """Two clips whose texts are what the float model hears."""
    rows = []
    with open_recognizer(tiny_bundle, threads=1) as recognizer:
        for index in range(2):
            wave = 0.3 * noise[4000 * index :][: RATE_HZ // 2]
            soundfile.write(tmp_path / f"{index}.wav", wave, RATE_HZ, subtype="FLOAT")
            text = recognizer.transcribe([wave])[0]
            rows.append(json.dumps({"audio_filepath": f"{index}.wav", "text": text}))
    (tmp_path / "dev.jsonl").write_text("\n".join(rows))
    return tmp_path / "dev.jsonl"


def test_a_bundle_is_quantized_in_five_lines(
    tiny_bundle: Bundle, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    (code,) = [part.split("```")[0] for part in page.split("```python\n") if "quantize(" in part]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 5
    monkeypatch.chdir(manifest.parent)
    Path("hubert").symlink_to(tiny_bundle.folder)
    namespace: dict[str, object] = {}
    exec(code.replace("MethodOptions()", 'MethodOptions("max")'), namespace)  # noqa: S102
    table = read_scales(Path("hubert-w8a8") / SCALES_FILE)
    assert table.data is not None
    assert (table.method, table.data.utterances, table.data.seconds) == ("max", 2, 1.0)
    report = json.loads((Path("hubert-w8a8") / "quantization.json").read_text())
    assert report["development_set"]["wer_float"] == 0.0
    made = namespace["made"]
    drop = report["development_set"]["drop"]["difference"]
    assert made.outcome.drop_points == 100 * drop  # type: ignore[attr-defined]
    assert not Path("hubert-w8a8.work").exists()


def test_whoever_watches_is_told_of_every_step(
    tiny_bundle: Bundle, manifest: Path, tmp_path: Path
) -> None:
    from speechquant.calibrators.methods import MethodOptions
    from speechquant.recipes import CalibrationRequest, DataSet, calibrate

    seen: list[tuple[str, float, int]] = []

    @contextmanager
    def watch(what: str) -> Iterator[OnStep | None]:
        yield lambda done, total: seen.append((what, done, total))

    request = CalibrationRequest(tiny_bundle, DataSet(manifest), method=MethodOptions("max"))
    table = calibrate(request, tmp_path / "work", watch).table
    assert seen == [("collecting statistics", 1, 2), ("collecting statistics", 2, 2)]
    first = CalibrationRequest(tiny_bundle, DataSet(manifest, 1), method=MethodOptions("max"))
    name = next(iter(table.tensors))
    alone = calibrate(first, tmp_path / "work").table.tensors[name].scale
    waves = [soundfile.read(manifest.with_name(f"{i}.wav"))[0] for i in range(2)]
    normalised = [abs((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)).max() for wave in waves]
    assert alone == pytest.approx(normalised[0] / 127, rel=1e-4)
    assert table.tensors[name].scale == pytest.approx(max(normalised) / 127, rel=1e-4)


def test_a_text_that_is_missing_is_said_when_texts_are_asked_for(tmp_path: Path) -> None:
    clips = ClipList((LabelledClip(tmp_path / "a.wav", None),))
    assert len(clips.clips(require_text=False)) == 1
    with pytest.raises(ManifestError, match=r"a\.wav: has no text"):
        clips.clips(require_text=True)
