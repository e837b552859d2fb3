# make demo    a virtual environment, the package in it, the sample model quantized and reported on
# make test    a virtual environment and the tests
# make check   ruff, mypy --strict and the tests
# make bench   speed and memory beside the machine's own floor
# make golden  freeze what this version writes: native files, and digests of the outputs of some commands
# make peers   real clients load our files, generate and say what they see; make peers-fast: those that start quickly

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers

.PHONY: demo test check lint bench golden peers peers-fast clean

$(BIN)/.installed: pyproject.toml $(wildcard quantcli/kernels/*.cpp quantcli/kernels/*.h) quantcli/kernels/CMakeLists.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .[dev]
	touch $@

$(PEERS)/current/.installed: tests/peers/environments.py
	$(PYTHON) tests/peers/environments.py current --environments $(PEERS)
	touch $@

demo: $(BIN)/.installed
	mkdir -p out
	$(BIN)/quantcli quantize sample_models/digits.safetensors --bits 4 --group-size 64 -o out/digits-w4g64.safetensors --force
	$(BIN)/quantcli report out/digits-w4g64.safetensors --against sample_models/digits.safetensors
	$(BIN)/python sample_models/evaluate.py sample_models/digits.safetensors
	$(BIN)/python sample_models/evaluate.py out/digits-w4g64.safetensors

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

bench: $(BIN)/.installed $(PEERS)/current/.installed
	$(BIN)/python tests/bench/bench.py --peer-python $(PEERS)/current/bin/python

golden: $(BIN)/.installed
	$(BIN)/python tests/golden/write_native.py
	$(BIN)/python tests/golden/write_outputs.py

peers: $(BIN)/.installed
	$(BIN)/python tests/peers/run.py --environments $(PEERS)

peers-fast: $(BIN)/.installed
	$(BIN)/python tests/peers/run.py --environments $(PEERS) --fast

clean:
	rm -rf $(VENV) $(PEERS) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
