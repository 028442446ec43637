"""A run of the page on real Whisper checkpoints that nobody has made."""

from __future__ import annotations

from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, Run, SetFacts

CHECKPOINT = CheckpointFacts("whisper-nano", "c" * 16)
RUN = Run(
    machine="a machine",
    threads=2,
    checkpoints=(CHECKPOINT,),
    test=SetFacts("test", "t" * 16, 4, 40.0, ("7", "8")),
    dev=SetFacts("dev", "d" * 16, 4, 30.0, ("5",)),
    calibration=SetFacts("cal", "e" * 16, 2, 20.0, ("1", "2")),
)


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {name: rest for name, *rest in cells}
