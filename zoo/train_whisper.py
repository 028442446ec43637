"""Train the Whisper of the zoo: `python -m speechquant.zoo.train_whisper --out runs/whisper`.

The encoder may begin with the blocks of zoo:hubert, and a CTC head on it, which no transcript
needs, tells it what to listen for: without it the decoder takes days to find where to look.
A run is killed and started again at will: it goes on from its last checkpoint. `--warm-start`
begins another run with the weights of a checkpoint. torchrun runs it in several processes.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.wer import score_wer
from speechquant.training.augment import coloured_noise, degrade
from speechquant.training.batches import in_rows
from speechquant.training.command_line import (
    begin,
    run_parser,
    settings_of,
    train_in_processes,
)
from speechquant.training.processes import ALONE, Processes
from speechquant.training.run import TrainingRun, fast_products, train_to_end
from speechquant.training.samples import LIVE_CONDITIONS, Sample, Sets, at_another_speed, shares_of
from speechquant.training.schedule import RunSettings
from speechquant.training.whisper import POSITION_SAMPLES, encode, log_mels, whole_positions
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.models import VOCABULARY, trained_model
from speechquant.zoo.train import text_loss
from speechquant.zoo.training_sets import training_sets
from speechquant.zoo.whisper_model import (
    CHUNK_SECONDS,
    HEAD_FILE,
    WEIGHTS_FILE,
    Tokens,
    new_tokens,
    new_whisper,
    prompt_and_target,
    read_tokens,
    save_whisper,
)
from speechquant.zoo.word_times import word_ends

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE_HZ
_IGNORED = -100
# A chunk of long audio is up to so many decades quieter than the loudest one.
_LOUDER_DECADES = 2.0
# A chunk that begins with a clip begins up to so much before it, or so much after it.
_RAGGED_SECONDS = (0.06, 0.04)
# So many strung together seldom leave room in a chunk, as long audio does not.
_MOST_CLIPS = 8
# Words are timed in so many clips of a set at most: there are tails enough in them.
_TIMED_CLIPS = 3_000
_MOST_DRAWS = 100
_POOL = 512  # examples that are sorted by length before they are batched


@dataclass(frozen=True)
class Settings(RunSettings):
    """What a run is made of; written beside its checkpoints."""

    warmup_steps: int = 500
    batch_seconds: float = 60.0
    synthetic_share: float = 0.8
    save_every: int = 100
    score_every: int = 500
    ctc_share: float = 0.3
    silent_share: float = 0.04
    joined_share: float = 0.25
    late_share: float = 0.2
    abutting_share: float = 0.5
    tail_share: float = 0.0
    ragged_share: float = 0.0
    wrong_token_share: float = 0.0
    quieter_share: float = 0.0
    timed_share: float = 0.4
    whole_chunk_share: float = 0.25


# A text, its start and its end in seconds, as `prompt_and_target` takes them.
Piece = tuple[str, float, float | None]


@dataclass(frozen=True)
class Example:
    """A chunk or less: its samples and the pieces said in it."""

    wave: NDArray[np.float32]
    pieces: tuple[Piece, ...]
    timestamps: bool

    @property
    def is_whole(self) -> bool:
        """Whether nothing that is said in it is cut off."""
        return all(end is not None for _, _, end in self.pieces)

    @property
    def tells_nothing_said(self) -> bool:
        """Whether all that is said is one clip that is cut off, at a word that nobody knows.

        Who learns from it to tell nothing loses a chunk full of speech.
        """
        return len(self.pieces) == 1 and not self.is_whole

    @property
    def heard(self) -> tuple[str, int]:
        """The text of what is not cut off, and the samples it is in."""
        text = " ".join(text for text, _, end in self.pieces if end is not None)
        if self.is_whole:
            return text, len(self.wave)
        return text, int(self.pieces[-1][1] * SAMPLE_RATE_HZ)


def make_example(draw: random.Random, sets: Sets, settings: Settings) -> Example:
    """Return one clip, some clips strung together, or nobody speaking."""
    for _ in range(_MOST_DRAWS):
        example = _draw_example(draw, sets, settings)
        if not example.tells_nothing_said:
            return example
    raise ValueError(f"no clip of {_MOST_DRAWS} ends in a chunk of {CHUNK_SECONDS} s; cut them")


def _draw_example(draw: random.Random, sets: Sets, settings: Settings) -> Example:
    rng = np.random.default_rng(draw.getrandbits(64))
    kind = draw.random()
    if kind < settings.silent_share:
        return _nobody_speaking(draw, rng)
    is_joined = kind < settings.silent_share + settings.joined_share
    timestamps = is_joined or draw.random() < settings.timed_share
    shares = shares_of(sets)
    samples = [
        draw.choice(draw.choices(sets, shares)[0][1])
        for _ in range(draw.randint(2, _MOST_CLIPS) if is_joined else 1)
    ]
    gaps = _gaps(draw, settings, len(samples), is_joined=is_joined)
    if is_joined and samples[0].word_ends and draw.random() < settings.tail_share:
        # After a wrong end a transcript goes on in the middle of what somebody says.
        samples[0] = samples[0].part(draw.randrange(len(samples[0].wave)), len(samples[0].wave))
        gaps[0] = 0
    elif is_joined and not gaps[0] and draw.random() < settings.ragged_share:
        samples = _with_a_ragged_start(draw, samples)
        gaps = [0] * (len(samples) - len(gaps)) + gaps
    wave, pieces = _strung_together(samples, gaps, rng)
    wave = np.asarray(degrade(wave, SAMPLE_RATE_HZ, LIVE_CONDITIONS, rng), np.float32)
    is_whole = not pieces or pieces[-1][2] is not None
    # Without timestamps a chunk says all that is in it; what is cut off nobody can spell.
    return Example(wave, tuple(pieces), timestamps or not is_whole)


def _gaps(draw: random.Random, settings: Settings, clips: int, *, is_joined: bool) -> list[int]:
    """Return the samples of silence before each clip."""
    longest = 0.8 if is_joined else 0.3
    # Silence between clips would be what it tells them apart by: in most recordings there is none.
    abutting = settings.abutting_share if is_joined else 0.0
    # Some begin late, or it would only listen to the start of a chunk.
    late = [0.7 * CHUNK_SECONDS] if draw.random() < settings.late_share else []
    return [
        0 if draw.random() < abutting else 1 + int(draw.uniform(0.0, most) * SAMPLE_RATE_HZ)
        for most in (late + [longest] * clips)[:clips]
    ]


def _with_a_ragged_start(draw: random.Random, samples: list[Sample]) -> list[Sample]:
    """Return the samples with the last moments of a clip before them, or the first one's cut off.

    A transcript goes on where its last timestamp said that a clip ends, which is seldom the very
    sample: every word is still heard then, and of the clip before nothing is.
    """
    before, after = _RAGGED_SECONDS
    offset = int(draw.uniform(-before, after) * SAMPLE_RATE_HZ)
    if offset < 0:
        return [Sample(samples[-1].wave[offset:], ""), *samples]
    first = samples[0]
    word_ends = tuple(end - offset for end in first.word_ends)
    return [Sample(first.wave[offset:], first.text, word_ends), *samples[1:]]


def _strung_together(
    samples: list[Sample], gaps: list[int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[Piece]]:
    """Return a chunk at most of the samples, each after its gap, and what is said in it."""
    waves: list[NDArray[np.float32]] = []
    pieces: list[Piece] = []
    end = 0
    for sample, gap in zip(samples, gaps, strict=True):
        wave = at_another_speed(sample, rng)
        start, end = end + gap, end + gap + len(wave)
        if start >= _CHUNK_SAMPLES:
            break
        waves += [np.zeros(gap, np.float32), wave]
        if end > _CHUNK_SAMPLES:
            pieces.append(_cut_off(sample, len(wave), start, is_first=not pieces))
            break
        if sample.text:
            pieces.append((sample.text, start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ))
    return np.concatenate(waves)[:_CHUNK_SAMPLES], pieces


def _cut_off(sample: Sample, length: int, start: int, *, is_first: bool) -> Piece:
    """Return what is told of a sample that is `length` long as heard and goes on after the chunk.

    The next chunk begins where it starts, so nothing but that; or of the first its whole words, or
    a transcript would never get past it.
    """
    seconds = start / SAMPLE_RATE_HZ
    if is_first and sample.word_ends:
        scale = len(sample.wave) / length
        heard = sample.part(0, int((_CHUNK_SAMPLES - start) * scale))
        if heard.text:
            return heard.text, seconds, seconds + heard.word_ends[-1] / scale / SAMPLE_RATE_HZ
    return sample.text, seconds, None


def _nobody_speaking(draw: random.Random, rng: np.random.Generator) -> Example:
    wave = np.zeros(int(draw.uniform(0.3, CHUNK_SECONDS) * SAMPLE_RATE_HZ), np.float32)
    if draw.random() < 0.8:
        # Any colour: a model that only knew white noise would talk in pink.
        level = np.float32(10 ** draw.uniform(-4.5, -0.7))
        wave = level * coloured_noise(len(wave), draw.uniform(-0.5, 2.0), rng)
    return Example(wave, (), timestamps=draw.random() < 0.5)


def batches(sets: Sets, settings: Settings, seed: str) -> Iterator[list[Example]]:
    """Yield batches of examples of about one length for ever."""
    draw = random.Random(seed)
    budget = int(settings.batch_seconds * SAMPLE_RATE_HZ)
    while True:
        pool = [make_example(draw, sets, settings) for _ in range(_POOL)]
        pool.sort(key=lambda example: len(example.wave))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and len(example.wave) * (len(groups[-1]) + 1) > budget:
                groups.append([])
            groups[-1].append(example)
        draw.shuffle(groups)
        yield from groups


class Run(TrainingRun):
    """A training run of the Whisper, with the CTC head beside its decoder.

    It begins with the blocks of zoo:hubert, with nothing, or with a whole `warm_start` checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        tokens: Tokens,
        *,
        warm: bool,
        warm_start: Path | None = None,
        processes: Processes = ALONE,
    ) -> None:
        import torch
        from transformers import WhisperFeatureExtractor

        self.settings, self.tokens = settings, tokens
        torch.manual_seed(settings.seed)
        self.model: Any = new_whisper(tokens)
        self.head = torch.nn.Linear(self.model.config.d_model, len(VOCABULARY))
        if warm_start is not None:
            self._begin_with(warm_start)
        elif warm:
            self._begin_with_hubert()
        self.filters = torch.from_numpy(WhisperFeatureExtractor().mel_filters).float()
        optimizer = torch.optim.AdamW(
            [*self.model.parameters(), *self.head.parameters()],
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        modules = {"model": self.model, "head": self.head}
        super().__init__(folder, settings, modules, optimizer, processes)

    def _begin_with(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        given = {key: value.float() for key, value in load_file(checkpoint / WEIGHTS_FILE).items()}
        # The output projection is the embedding, and is stored once.
        given.setdefault("proj_out.weight", given["model.decoder.embed_tokens.weight"])
        self.model.load_state_dict(given)
        head = load_file(checkpoint / HEAD_FILE)
        self.head.load_state_dict({key: value.float() for key, value in head.items()})
        log.info("%d tensors taken from %s", len(given), checkpoint)

    def _begin_with_hubert(self) -> None:
        from safetensors.torch import load_file

        given = load_file(trained_model("hubert") / "model.safetensors")
        names = {
            "attention": "self_attn",
            "layer_norm": "self_attn_layer_norm",
            "feed_forward.intermediate_dense": "fc1",
            "feed_forward.output_dense": "fc2",
            "final_layer_norm": "final_layer_norm",
        }
        taken = {}
        own = self.model.model.encoder.state_dict()
        for key, value in given.items():
            for old, new in names.items():
                for layer in range(self.model.config.encoder_layers):
                    start = f"hubert.encoder.layers.{layer}.{old}."
                    target = f"layers.{layer}.{new}.{key.removeprefix(start)}"
                    if key.startswith(start) and target in own:
                        taken[target] = value.float()
        self.model.model.encoder.load_state_dict(taken, strict=False)
        self.head.weight.data = given["lm_head.weight"].float()
        self.head.bias.data = given["lm_head.bias"].float()
        log.info("%d tensors of %d taken from zoo:hubert", len(taken), len(own))

    def write_checkpoint(self) -> None:
        """Write the model in Hugging Face format, with the log and the settings that made it."""
        from safetensors.torch import save_file

        folder = self.folder / "checkpoint"
        save_whisper(self.model, self.tokens, folder)
        # For those who train it further: without the head nothing hears where words end.
        save_file(
            {key: value.half() for key, value in self.head.state_dict().items()},
            folder / HEAD_FILE,
        )
        self.copy_notes(folder)

    @property
    def seed_of_step(self) -> str:
        """What is drawn by chance from this step on in this process, as no other draws it."""
        return f"{self.settings.seed}/{self.processes.place(self.step)}"

    def train_on(self, batch: list[Example]) -> tuple[float, float]:
        """Take one step and return the losses of the decoder and of the CTC head."""
        import torch
        from torch.nn.functional import cross_entropy

        draw = random.Random(self.seed_of_step)
        waves = torch.from_numpy(self._padded(batch, draw))
        features = log_mels(waves, self.filters, self._louder(batch, draw))
        rows = [
            prompt_and_target(self.tokens, example.pieces, timestamps=example.timestamps)
            for example in batch
        ]
        with fast_products():
            hidden = encode(self.model, features)
            labels = self.head(hidden)
            given, wanted = self._inputs_and_targets(rows, draw)
            states = self.model.model.decoder(
                input_ids=given, encoder_hidden_states=hidden, use_cache=False
            ).last_hidden_state
            logits = self.model.proj_out(states)
        loss = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED)
        ctc = self._ctc_loss(labels, batch)
        self.descend(loss + self.settings.ctc_share * ctc)
        return float(loss.detach()), float(ctc.detach())

    def _padded(self, batch: list[Example], draw: random.Random) -> NDArray[np.float32]:
        longest = max(len(example.wave) for example in batch)
        least = longest + SAMPLE_RATE_HZ // 10
        # A transcript is always made of a whole chunk, most of it silence.
        is_chunk = draw.random() < self.settings.whole_chunk_share
        samples = _CHUNK_SAMPLES if is_chunk else min(least, _CHUNK_SAMPLES)
        return in_rows([example.wave for example in batch], whole_positions(samples))

    def _louder(self, batch: list[Example], draw: random.Random) -> torch.Tensor:
        """Return how much louder the audio gets elsewhere that each is a chunk of.

        Long audio is cut off below its own loudest moment, and is heard with timestamps.
        """
        import torch

        decades = [
            draw.uniform(0.0, _LOUDER_DECADES)
            if example.timestamps and draw.random() < self.settings.quieter_share
            else 0.0
            for example in batch
        ]
        return torch.tensor(decades)[:, None, None]

    def _inputs_and_targets(
        self, rows: list[list[int]], draw: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        longest = max(map(len, rows)) - 1
        given = np.full((len(rows), longest), self.tokens.end, np.int64)
        wanted = np.full((len(rows), longest), _IGNORED, np.int64)
        for index, row in enumerate(rows):
            given[index, : len(row) - 1] = row[:-1]
            wanted[index, : len(row) - 1] = row[1:]
        # One wrong word must not decide the next ones: what is heard has to.
        rng = np.random.default_rng(draw.getrandbits(64))
        is_text = given < self.tokens.end
        is_wrong = is_text & (rng.random(given.shape) < self.settings.wrong_token_share)
        given[is_wrong] = rng.permutation(given[is_text])[: is_wrong.sum()]
        return torch.from_numpy(given), torch.from_numpy(wanted)

    def with_word_ends(self, samples: list[Sample], at_once: int = 16) -> list[Sample]:
        """Return the samples with the ends of their words as the CTC head hears them."""
        import torch

        given: list[Sample] = []
        by_length = sorted(samples, key=lambda sample: len(sample.wave))
        for first in range(0, len(samples), at_once):
            group = by_length[first : first + at_once]
            longest = min(whole_positions(len(group[-1].wave)), _CHUNK_SAMPLES)
            waves = in_rows([sample.floats for sample in group], longest)
            with torch.inference_mode(), fast_products():
                labels = self.head(
                    encode(self.model, log_mels(torch.from_numpy(waves), self.filters))
                )
            scores = torch.log_softmax(labels.float(), -1).numpy()
            for sample, row in zip(group, scores, strict=True):
                positions = -(-len(sample.wave) // POSITION_SAMPLES)
                ends = word_ends(row[:positions], sample.text) if positions <= len(row) else []
                samples_at = (min(int(end * POSITION_SAMPLES), len(sample.wave)) for end in ends)
                given.append(replace(sample, word_ends=tuple(samples_at)))
        return given

    def _ctc_loss(self, labels: torch.Tensor, batch: list[Example]) -> torch.Tensor:
        import torch

        heard = [example.heard for example in batch]
        positions = [min(labels.shape[1], samples // POSITION_SAMPLES + 1) for _, samples in heard]
        return text_loss(labels, torch.tensor(positions), [text for text, _ in heard])


def transcribe(run: Run, samples: list[Sample], at_once: int = 16) -> list[str]:
    """Return the greedy text of each sample, in whole chunks."""
    import torch

    run.model.eval()
    texts: list[str] = []
    tokens, most = run.tokens, run.model.config.max_target_positions
    with torch.inference_mode():
        for first in range(0, len(samples), at_once):
            group = samples[first : first + at_once]
            waves = in_rows([sample.floats for sample in group], _CHUNK_SAMPLES)
            hidden = encode(run.model, log_mels(torch.from_numpy(waves), run.filters))
            heard = torch.tensor([[tokens.start, tokens.no_timestamps]] * len(group))
            while heard.shape[1] < most and not (heard == tokens.end).any(1).all():
                states = run.model.model.decoder(
                    input_ids=heard, encoder_hidden_states=hidden, use_cache=False
                ).last_hidden_state[:, -1:]
                best = run.model.proj_out(states).argmax(-1)
                heard = torch.cat([heard, best], dim=1)
            for row in heard.tolist():
                row = row[2 : row.index(tokens.end) if tokens.end in row else None]
                text = tokens.tokenizer.decode([token for token in row if token < tokens.end])
                texts.append(text.strip())
    run.model.train()
    return texts


def word_error_percent(run: Run, samples: list[Sample]) -> float:
    """Return the WER of the model on the samples, in percent."""
    texts = run.processes.divided(samples, lambda own: transcribe(run, own))
    return 100 * score_wer([sample.text for sample in samples], texts).rate


def train(run: Run, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train to the end of the settings, saving the checkpoint in Hugging Face format as it goes."""
    if run.settings.tail_share:
        sets = [
            (share, run.with_word_ends(samples[:_TIMED_CLIPS]) + samples[_TIMED_CLIPS:])
            for share, samples in sets
        ]
    run.model.train()
    # Each process draws its own, because most of the work is to make an example, not to choose it.
    source = batches(sets, run.settings, run.seed_of_step)

    def take_step() -> dict[str, float]:
        loss, ctc = run.train_on(next(source))
        return {"loss": loss, "ctc": ctc}

    def score() -> dict[str, float]:
        return {f"wer_{name}": word_error_percent(run, some) for name, some in scored.items()}

    train_to_end(run, run.settings, take_step, score, run.write_checkpoint)


def _write_tokens(path: Path, warm_start: Path | None, sets: Sets) -> None:
    """Write the tokens of a new run: those it begins with, or new ones."""
    if path.exists():
        return
    if warm_start:
        shutil.copyfile(warm_start / path.name, path)
        return
    texts = [sample.text for _, samples in sets for sample in samples]
    new_tokens(f" {text}" for text in texts).tokenizer.save(str(path))


def _run(options: argparse.Namespace, processes: Processes) -> None:
    settings = settings_of(options, Settings())
    warm_start: Path | None = options.warm_start
    begin(
        options,
        settings,
        processes,
        begins_with_hubert=not (options.cold or warm_start),
        warm_start=warm_start.name if warm_start else None,
    )
    rng = random.Random(settings.seed)
    sets, scored = training_sets(options.extra_data, settings.synthetic_share, rng)
    if processes.is_first:
        _write_tokens(options.out / "tokenizer.json", warm_start, sets)
    processes.wait()
    run = Run(
        options.out,
        settings,
        read_tokens(options.out),
        warm=not options.cold,
        warm_start=warm_start,
        processes=processes,
    )
    train(run, sets, scored)


def main() -> None:
    """Run the command line."""
    parser = run_parser(__doc__, "speechquant.zoo.train_whisper", Settings())
    parser.add_argument("--cold", action="store_true", help="begin without zoo:hubert's blocks")
    parser.add_argument("--warm-start", type=Path, help="checkpoint whose weights it begins with")
    options = parser.parse_args()
    train_in_processes(_run, options, on_gpu=False)


if __name__ == "__main__":
    main()
