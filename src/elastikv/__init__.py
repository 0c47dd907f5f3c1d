"""Language models with a KV cache that costs what is used, not what is allowed."""
