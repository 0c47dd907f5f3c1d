"""Configs without files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastikv.models import registry
from elastikv.models.config import ModelConfig
from elastikv.weights.hf import HFConfig


def parse_hf_config(raw: Mapping[str, Any], *, name: str) -> ModelConfig:
    """Of a ``config.json`` that is parsed already."""
    config = HFConfig(raw, name=name)
    return registry.of_hf(config).read_hf_config(config)
