"""A calibration written to files: the scale table, its search log, TensorRT's calibration cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from speechquant.calibrators.methods import STABLEQUANT
from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.calibrators.tensorrt import algorithm_of, cache_version, calibration_cache
from speechquant.core.bundles import require_float
from speechquant.core.errors import OptionError
from speechquant.core.files import new_file, refuse_existing_file, refuse_unwritable
from speechquant.core.graphs import INPUT, OUTPUT
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import ScaleTable, write_scales
from speechquant.recipes.calibrate import Calibration, CalibrationRequest, calibrate
from speechquant.recipes.work import alone_in, remove_work, work_folder


@dataclass(frozen=True)
class TableFiles:
    """Where a scale table goes, and TensorRT's calibration cache where one is asked for.

    `tensorrt_version` is that of the TensorRT that reads the cache, None for the installed one.
    """

    scales: Path
    tensorrt_cache: Path | None = None
    tensorrt_version: str | None = None
    force: bool = False

    @property
    def search_log(self) -> Path:
        """Where every evaluation of a search is written."""
        return self.scales.with_name(f"{self.scales.stem}.{SEARCH_FILE}")


def write_calibration(
    request: CalibrationRequest, files: TableFiles, progress: Progress = no_progress
) -> Calibration:
    """Calibrate and write the files; raises what `calibrate` raises, and OutputExistsError.

    For a cache it raises OptionError for a table that TensorRT has no integers for,
    MissingPackageError and EngineError where no TensorRT reads it: all before any work.
    """
    _refuse_before_any_work(request, files)
    work = work_folder(files.scales)
    with alone_in(work):
        made = calibrate(request, work, progress)
        cache = _cache_of(made.table, files)
        write_scales(made.table, files.scales, force=files.force)
        if made.search is not None:
            with new_file(files.search_log, force=True) as partial:
                shutil.copyfile(work / SEARCH_FILE, partial)
        if files.tensorrt_cache is not None:
            with new_file(files.tensorrt_cache, force=files.force) as partial:
                partial.write_bytes(cache)
        remove_work(work)
    return made


def _refuse_before_any_work(request: CalibrationRequest, files: TableFiles) -> None:
    require_float(request.bundle)
    written = [files.scales]
    if request.method.method == STABLEQUANT:
        written.append(files.search_log)
    if files.tensorrt_cache is not None:
        written.append(files.tensorrt_cache)
    if len({path.resolve() for path in written}) < len(written):
        raise OptionError(f"{files.scales}: named for two outputs; give each a name of its own")
    for path in written:
        refuse_existing_file(path, force=files.force)
        refuse_unwritable(path)
    _cache_of(request.empty_table, files)


def _cache_of(table: ScaleTable, files: TableFiles) -> bytes:
    if files.tensorrt_cache is None:
        return b""
    if table.placement == OUTPUT:
        raise OptionError(
            "TensorRT rounds the inputs of products, so a calibration cache goes with --placement "
            f"{INPUT} alone; leave --tensorrt-cache out"
        )
    version = cache_version(files.tensorrt_version)
    return calibration_cache(table, version, algorithm_of(table.method))
