"""Hugging Face folders: ``config.json``, safetensors, tokenizers."""

from elastikv.weights.hf.config import HFConfig, read_hf_config
from elastikv.weights.hf.folder import HFFolder

__all__ = ["HFConfig", "HFFolder", "read_hf_config"]
