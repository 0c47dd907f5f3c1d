"""Which model a transformers config is of."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedConfig

# What may change without changing what the model remembers or computes.
_IRRELEVANT = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "architectures"}


def config_digest(config: PreTrainedConfig) -> str:
    """SHA-256 of all that shapes the model (32 hex digits); its weights are not known here."""
    facts = {name: value for name, value in config.to_dict().items() if name not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
