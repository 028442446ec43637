"""The models of a server, by the names that clients ask for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechquant.core.errors import OptionError
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.serve.options import ServeOptions
from speechquant.serve.scheduler import Scheduler, Watch


@dataclass(frozen=True)
class ServedModel:
    """A model, what it is asked through, its queue, and how it is asked for what is left open."""

    name: str
    folder: Path
    recognizer: Recognizer
    scheduler: Scheduler
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    opened: int = field(default_factory=lambda: int(time.time()))

    @property
    def facts(self) -> dict[str, Any]:
        """What OpenAI's API tells of a model."""
        owner = "speechquant"
        return {"id": self.name, "object": "model", "created": self.opened, "owned_by": owner}


@contextmanager
def opened_models(
    folders: Sequence[Path], provider: str | None, options: ServeOptions, watch: Watch
) -> Iterator[Mapping[str, ServedModel]]:
    """Yield the models in folders by the folders' names; raises what `open_recognizer` does."""
    models: dict[str, ServedModel] = {}
    batching, decoding = options.batching, options.decoding
    with ExitStack() as stack:
        for folder in folders:
            name = Path(os.path.abspath(folder)).name  # noqa: PTH100 - a link keeps its name
            if name in models:
                raise OptionError(f"{folder}: there is a model {name!r} already; rename the folder")
            recognizers = [
                stack.enter_context(
                    open_recognizer(
                        folder, provider=provider, threads=batching.cores, decoding=decoding
                    )
                )
                for _ in range(batching.workers)
            ]
            scheduler = Scheduler(name, recognizers, batching, watch)
            stack.callback(scheduler.close)
            models[name] = ServedModel(name, folder, recognizers[0], scheduler, decoding)
        yield models
