"""The names to type first: `import speechquant as sq`, then `sq.transcribe(folder, ["a.flac"])`.

load        a bundle or an engine, of whichever family, from its folder
transcribe  audio files to texts
export      a checkpoint to a bundle
build       a bundle to an engine
"""

from typing import TYPE_CHECKING

from speechquant.core.lazy import lazy_names

if TYPE_CHECKING:
    from speechquant.engines.build import build_engine as build
    from speechquant.engines.session import load_any_source as load
    from speechquant.exporter import export
    from speechquant.transcribing import transcribe
    from speechquant.version import __version__

__all__ = ["__version__", "build", "export", "load", "transcribe"]

__getattr__ = lazy_names(
    __name__,
    {
        "__version__": "speechquant.version",
        "build": "speechquant.engines.build:build_engine",
        "export": "speechquant.exporter.export",
        "load": "speechquant.engines.session:load_any_source",
        "transcribe": "speechquant.transcribing",
    },
)
