"""elastikv on several machines, by Ray Serve. Only ``app`` needs Ray; what decides is plain Python."""
