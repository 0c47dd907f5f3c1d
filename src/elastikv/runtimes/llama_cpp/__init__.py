"""llama.cpp as a runtime: its weights, its kernels on any device that it has, and a context that grows.

``library.py``, ``model.py`` and ``context.py`` are all that calls its C interface.
``growing.py`` swaps contexts and ``cost.py`` knows beforehand what one would take; ``room.py`` decides when;
``memory.py`` keeps the books of sequences; ``runtime.py`` decodes.
"""
