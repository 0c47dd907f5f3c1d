"""What the package is made with, and what its tests and its benchmarks share. Run in the repository's root."""
