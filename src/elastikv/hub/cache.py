"""What the hub's cache has: ``models--user--repo/snapshots/<commit>/...``. Nothing here asks anybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elastikv.errors import CorruptFile
from elastikv.hub.files import pick, quantisations
from elastikv.hub.reference import HubModel
from elastikv.weights.folders import folder_name, weight_names


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that is there as a whole. path: what ``LLM`` takes. n_bytes: of its weights."""

    model: HubModel
    path: Path
    n_bytes: int


def folder() -> Path:
    """Of the cache: ``HF_HUB_CACHE``, or below ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repo: str) -> Path:
    """Of one repository; it need not be there."""
    from huggingface_hub.file_download import repo_folder_name

    return folder() / repo_folder_name(repo_id=repo, repo_type="model")


def find(model: HubModel) -> Path | None:
    """Its path, from the newest snapshot that has all of it."""
    for snapshot in _snapshots(repository_folder(model.repo)):
        names = _names(snapshot)
        parts = pick(_complete(names), model.quant)
        if parts is not None:
            return snapshot / parts[0]
        if model.quant is None and _folder_weights(snapshot, names):
            return snapshot
    return None


def models() -> list[CachedModel]:
    """All, sorted by name; of each the newest."""
    found: dict[HubModel, CachedModel] = {}
    for repository in sorted(folder().glob("models--*--*")):
        for snapshot in _snapshots(repository):
            for each in _models_in(snapshot):
                found.setdefault(each.model, each)
    return list(found.values())


def _models_in(snapshot: Path) -> Iterator[CachedModel]:
    names = _names(snapshot)
    repo = folder_name(snapshot)
    for label, parts in _complete(names).items():
        yield CachedModel(HubModel(repo, label), snapshot / parts[0], _n_bytes(snapshot, parts))
    if weights := _folder_weights(snapshot, names):
        yield CachedModel(HubModel(repo), snapshot, _n_bytes(snapshot, weights))


def _snapshots(repository: Path) -> list[Path]:
    """That of the main branch, then the others, newest first."""
    try:
        main = (repository / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    found = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


def _names(snapshot: Path) -> set[str]:
    """Files that are there; a link to what was deleted is none."""
    return {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}


def _complete(names: set[str]) -> dict[str, tuple[str, ...]]:
    return {label: parts for label, parts in quantisations(names).items() if names.issuperset(parts)}


def _folder_weights(snapshot: Path, names: set[str]) -> list[str]:
    """The weights of a Hugging Face folder that has all of them; else none."""
    try:
        weights = weight_names(snapshot)
    except CorruptFile:
        return []
    return weights if names.issuperset(["config.json", *weights]) else []


def _n_bytes(snapshot: Path, names: list[str] | tuple[str, ...]) -> int:
    return sum((snapshot / name).stat().st_size for name in names)
