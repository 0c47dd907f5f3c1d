"""What measures. Each module is a command, run in the repository's root: ``python -m bench.memory``.

The packages that some of them need come with ``pip install -e ".[dev]"``. Figures: docs/benchmarks.md.

memory, resident        resident bytes beside committed ones: of a cache, of a whole process
resize, start           what a resize costs in a decode step; what ``-c`` costs at the start
llama_cpp               llama.cpp as a runtime: memory, resizes, the start
kernels, step_profile   rates of each kernel beside a plain read; where a decode step's milliseconds go
peers, server_peers     beside llama.cpp and transformers; beside llama-server
transformers_cache      ElasticCache beside transformers' own caches
sessions, soak          many sessions on one budget; minutes of clients that misbehave
fleet                   routers and scaling on up to 1,000 replicas, simulated
quality                 what smaller cells and packed weights cost
speculation             prompt lookup on and off, and that the texts are the same
shapes                  random models in the shapes of real ones, which the others use
"""
