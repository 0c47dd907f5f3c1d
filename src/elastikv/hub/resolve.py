"""From what a caller calls a model to where it lies."""

from __future__ import annotations

import logging
from pathlib import Path

from elastikv.errors import HubError
from elastikv.hub import cache
from elastikv.hub.reference import HubModel

_log = logging.getLogger(__name__)


def local_path(model: str | Path | HubModel | None, *, weights: bool = True) -> Path:
    """The model's folder or file. None is the demo model, a Path is one.

    A HubModel, and a text that names one and no path that exists, is fetched unless the hub's cache has it.
    weights: False if what tells its costs will do. Raises HubError.
    """
    if model is None:
        from elastikv import demo

        return demo.path()
    if isinstance(model, HubModel):
        return _of_hub(model, weights)
    if isinstance(model, str) and HubModel.is_name(model) and not Path(model).expanduser().exists():
        try:
            return _of_hub(HubModel.parse(model), weights)
        except HubError as error:
            raise HubError(f"{model}: no such file or folder, nor can the hub's be had: {error}") from None
    return Path(model)


def _of_hub(model: HubModel, weights: bool) -> Path:
    path = cache.find(model)
    if path is None:
        from elastikv.hub.download import pull, pull_facts

        path = pull(model) if weights else pull_facts(model)
    if path.suffix == ".gguf" and model.quant is None:
        _log.info("%s: %s", model, path.name)
    return path
