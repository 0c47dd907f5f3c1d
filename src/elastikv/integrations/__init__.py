"""elastikv's memory for other projects. Nothing is imported here: what is behind it may not be installed."""
