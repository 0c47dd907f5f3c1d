"""GGUF files: header, tensors and where they came from, tokenizer."""

from elastikv.weights.gguf.config import GGUFFields
from elastikv.weights.gguf.file import GGUFFile
from elastikv.weights.gguf.places import Change, Place, PlacedTensors

__all__ = ["Change", "GGUFFields", "GGUFFile", "Place", "PlacedTensors"]
