"""From tokens to text: decode calls, sampling, and many requests sharing one memory."""
