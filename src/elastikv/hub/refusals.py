"""Why a model of the hub cannot be had, in one line that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from elastikv.errors import HubError, one_line
from elastikv.hub import cache
from elastikv.hub.reference import HubModel

_LOGIN = "set HF_TOKEN or run `hf auth login`"


@contextlib.contextmanager
def explained(model: HubModel) -> Iterator[None]:
    """Within it, what huggingface_hub raises becomes HubError."""
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
        reason = _reason(error.__cause__ or error)
        raise HubError(f"{model} cannot be fetched: {hub} is out of reach ({reason}); {later}") from None
    except OSError as error:
        reason = error.strerror or _reason(error)
        raise HubError(f"{model} cannot be fetched into {cache.folder()}: {reason}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; `elastikv pull {model}` goes on from here") from None


def _reason(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
