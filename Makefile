# Two commands set everything up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROMPT ?= def 

.PHONY: run test test-slow lint bench clean llama-cpp

run: $(VENV)/.installed
	$(BIN)/elastikv run -p "$(PROMPT)" -n 200 -c 32768 --repeat-penalty 1.1 --seed 4 --stats

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.resize

clean:
	rm -rf $(VENV)

# For the tests of the runtime llama.cpp. It is compiled, here without tools and with few optimisations: in 4 minutes, not 10.
llama-cpp: $(VENV)/.installed-dev
	SKBUILD_BUILD_TARGETS="llama;llama-common" \
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1" \
	$(BIN)/pip install --quiet -c constraints.txt -e ".[llama-cpp]"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
