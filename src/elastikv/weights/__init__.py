"""Files in: tensors, configs and tokenizers of Hugging Face folders and GGUF files. Knows no architecture."""
