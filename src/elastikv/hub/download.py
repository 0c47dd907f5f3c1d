"""From the hub into its cache: the files of one model, one after the other, the weights last.

huggingface_hub asks, authenticates, retries and keeps; but of a file in which it was interrupted it keeps nothing. So
weights go over plain HTTP into ``<blob>.incomplete`` first, and the next try goes on from there. What takes its Xet
protocol (files above 50 GB) begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, HfFileMetadata, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils.sha import sha_fileobj

from elastikv.errors import HubError
from elastikv.hub import cache
from elastikv.hub.files import Parts, beside_weights, is_safe, pick, quantisations
from elastikv.hub.reference import HubModel
from elastikv.hub.refusals import explained
from elastikv.weights.folders import weight_names

_SECONDS = 10
"""For the hub to answer; after that it counts as out of reach."""

_HEADER_BYTES = 32 << 20
"""Beginning of a GGUF file that holds its header, however large the vocabulary."""


def pull(model: HubModel) -> Path:
    """Fetch what the cache lacks of a model's newest state; its path there. Raises HubError.

    After an error, or Ctrl-C, the next call goes on with what there is.
    """
    with explained(model):
        commit = _newest(model.repo)
        return _pull_gguf(commit, model.quant) if quantisations(commit.names) else _pull_folder(commit, model.quant)


def pull_facts(model: HubModel) -> Path:
    """Fetch what tells a model's costs: ``config.json``, or the beginning of a GGUF file; its path. Raises HubError."""
    with explained(model):
        commit = _newest(model.repo)
        if not quantisations(commit.names):
            _refuse_folder_without_weights(commit, model.quant)
            return commit.fetch("config.json")
        parts = _parts(commit, model.quant)
        if len(parts) > 1:
            raise HubError(
                f"{model} is in {len(parts)} files, which tell its costs together; first: elastikv pull {model}"
            )
        return commit.fetch_header(parts[0])


@dataclass(frozen=True, slots=True)
class _Commit:
    """A repository as it was at one time. names: of all its files."""

    repo: str
    sha: str
    names: Sequence[str]

    def fetch(self, name: str) -> Path:
        """A file of any size is there, or is fetched."""
        return Path(hf_hub_download(self.repo, name, revision=self.sha))

    def fetch_weights(self, names: Sequence[str]) -> None:
        """The same, each from where the last try has ended. Raises HubError."""
        if missing := set(names).difference(self.names):
            raise HubError(f"{self.repo} lacks {len(missing)} of {len(names)} files, such as {min(missing)}")
        for name in names:
            url = hf_hub_url(self.repo, name, revision=self.sha)
            facts = get_hf_file_metadata(url, timeout=_SECONDS)
            if _can_resume(facts):
                _fetch_blob(url, name, facts, cache.repository_folder(self.repo))
            self.fetch(name)

    def fetch_header(self, name: str) -> Path:
        """Of a GGUF: a file as long as the whole, whose weights are a hole. It is no model, hence in no snapshot."""
        path = cache.repository_folder(self.repo) / "headers" / self.sha / name
        if path.exists():
            return path
        url = hf_hub_url(self.repo, name, revision=self.sha)
        size = get_hf_file_metadata(url, timeout=_SECONDS).size
        headers = build_hf_headers() | {"Range": f"bytes=0-{_HEADER_BYTES - 1}", "Accept-Encoding": "identity"}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.incomplete")
        with (
            partial.open("wb") as file,
            get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as response,
        ):
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                file.write(chunk)
                if file.tell() >= _HEADER_BYTES:  # whoever ignores the range would send all of it
                    break
            file.truncate(size)
        return partial.replace(path)

    def become_main(self, name: str) -> None:
        """Note in the cache that this is the main branch's state. name: of a file that is there."""
        hf_hub_download(self.repo, name)


def _newest(repo: str) -> _Commit:
    info = HfApi().model_info(repo, timeout=_SECONDS)
    names = (file.rfilename for file in info.siblings or ())
    return _Commit(repo, str(info.sha), sorted(filter(is_safe, names)))


def _parts(commit: _Commit, quant: str | None) -> Parts:
    models = quantisations(commit.names)
    parts = pick(models, quant)
    if parts is None:
        raise HubError(f"{commit.repo} has no {quant}; it has {', '.join(models)}")
    return parts


def _pull_gguf(commit: _Commit, quant: str | None) -> Path:
    parts = _parts(commit, quant)
    commit.fetch_weights(parts)
    commit.become_main(parts[0])
    return commit.fetch(parts[0])


def _pull_folder(commit: _Commit, quant: str | None) -> Path:
    _refuse_folder_without_weights(commit, quant)
    for name in beside_weights(commit.names):
        commit.fetch(name)
    folder = commit.fetch("config.json").parent
    commit.fetch_weights(weight_names(folder))
    commit.become_main("config.json")
    return folder


def _refuse_folder_without_weights(commit: _Commit, quant: str | None) -> None:
    if "config.json" not in commit.names or not any(name.endswith(".safetensors") for name in commit.names):
        raise HubError(f"{commit.repo} has neither GGUF files nor config.json and safetensors, so nothing here runs it")
    if quant is not None:
        raise HubError(f"{commit.repo} has no GGUF files, so there is no {quant}; ask for {commit.repo}")


def _can_resume(facts: HfFileMetadata) -> bool:
    """Whether it is known by a hash, and comes over plain HTTP."""
    is_hash = facts.etag is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", facts.etag)
    return bool(is_hash) and facts.size is not None and facts.size <= constants.MAX_HTTP_DOWNLOAD_SIZE


def _fetch_blob(url: str, name: str, facts: HfFileMetadata, repository: Path) -> None:
    """Where huggingface_hub would keep it, which then has nothing left to fetch. Raises HubError."""
    assert facts.etag is not None
    assert facts.size is not None
    blob = repository / "blobs" / facts.etag
    lock = repository.parent / ".locks" / repository.name / f"{facts.etag}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        partial = blob.with_name(f"{facts.etag}.incomplete")
        with partial.open("ab") as file:
            if file.tell() > facts.size:
                file.truncate(0)
            begun = file.tell()
            http_get(
                url,
                file,
                resume_size=begun,
                headers=build_hf_headers(),
                expected_size=facts.size,
                displayed_filename=name,
            )
        if begun and not _has_hash(partial, facts.etag):
            partial.unlink()
            raise HubError(f"{name} was damaged where an earlier try had ended, and is thrown away; try again")
        partial.replace(blob)


def _has_hash(path: Path, etag: str) -> bool:
    """Large files are known by their SHA-256; the others are too small to be interrupted in."""
    with path.open("rb") as file:
        return len(etag) != 64 or sha_fileobj(file).hex() == etag
