"""From the hub into its cache: the files of one model, one after the other, the weights last.

huggingface_hub asks, authenticates, retries and keeps; but of a file in which it was interrupted it keeps nothing. So
weights go over plain HTTP into ``<blob>.incomplete`` first, and the next try goes on from there. What takes its Xet
protocol (files above 50 GB) begins anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, HfFileMetadata, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from huggingface_hub.utils.sha import sha_fileobj

from elastikv.errors import HubError
from elastikv.hub import cache
from elastikv.hub.files import beside_weights, is_safe, pick, quantisations
from elastikv.hub.reference import HubModel
from elastikv.weights.folders import weight_names

_SECONDS = 10
"""For the hub to answer; after that it counts as out of reach."""

_LOGIN = "set HF_TOKEN or run `hf auth login`"


def pull(model: HubModel) -> Path:
    """Fetch what the cache lacks of a model's newest state; its path there. Raises HubError.

    After an error, or Ctrl-C, the next call goes on with what there is.
    """
    with _explained(model):
        commit = _newest(model.repo)
        return _pull_gguf(commit, model.quant) if quantisations(commit.names) else _pull_folder(commit, model.quant)


def pull_config(model: HubModel) -> Path:
    """Fetch the ``config.json`` alone; its path in the cache. Raises HubError, also for GGUF, which has none."""
    with _explained(model):
        commit = _newest(model.repo)
        if quantisations(commit.names):
            raise HubError(f"{model} is not in the hub's cache; first: elastikv pull {model}")
        _refuse_folder_without_weights(commit, model.quant)
        return commit.fetch("config.json")


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

    def become_main(self, name: str) -> None:
        """Note in the cache that this is the main branch's state. name: of a file that is there."""
        hf_hub_download(self.repo, name)


def _newest(repo: str) -> _Commit:
    info = HfApi().model_info(repo, timeout=_SECONDS)
    names = (file.rfilename for file in info.siblings or ())
    return _Commit(repo, str(info.sha), sorted(filter(is_safe, names)))


def _pull_gguf(commit: _Commit, quant: str | None) -> Path:
    models = quantisations(commit.names)
    parts = pick(models, quant)
    if parts is None:
        raise HubError(f"{commit.repo} has no {quant}; it has {', '.join(models)}")
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


@contextlib.contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """What huggingface_hub raises, as one line that says what to do."""
    hub = constants.ENDPOINT
    later = f"once online: elastikv pull {model}"
    try:
        yield
    except OfflineModeIsEnabled:
        raise HubError(f"{model} cannot be fetched: HF_HUB_OFFLINE is set; {later}") from None
    except GatedRepoError:
        raise HubError(f"{model.repo} is gated: accept its terms at {hub}/{model.repo}, then {_LOGIN}") from None
    except RepositoryNotFoundError:
        raise HubError(f"{hub} has no {model.repo}, or it is private: then {_LOGIN}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f"; {_LOGIN}" if status in (401, 403) else ""
        raise HubError(f"{hub} answers {status} for {model.repo}{hint}") from None
    except (HTTPError, LocalEntryNotFoundError) as error:
        reason = _one_line(error.__cause__ or error)
        raise HubError(f"{model} cannot be fetched: {hub} is out of reach ({reason}); {later}") from None
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise HubError(f"{model} cannot be fetched into {cache.folder()}: {reason}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; `elastikv pull {model}` goes on from here") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
