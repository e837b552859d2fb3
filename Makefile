# make demo    a virtual environment with the package alone; sample models quantized and measured
# make test    a virtual environment with what the tests need, and the tests
# make check   ruff, mypy --strict and the tests, which must cover most of the code (TESTS: more options of pytest)
# make docs    the tables of README.md and of the topics of quantcli help, and pages of man, written from the code
# make bench   speed and memory beside the machine's own floor, to tests/bench/RESULTS.md and README.md (12 minutes, and
#              8 GB; BENCH_OPTIONS="--folder /dev/shm": in memory); make bench-peers: llama.cpp, MLX and others beside it
#              (4 minutes)
# make bench-urls  models in a bucket of a server on this machine, behind a link of 100 MB/s and 50 ms, and beside the
#              same runs on a disk (6 minutes, 6 GB)
# make bench-quality  what is lost in how many bits, beside llama.cpp, HQQ, MLX and others: SQNR of weights (20 minutes),
#              and models that are run, with and without statistics (an hour; BENCH_OPTIONS="--model resnet=FOLDER
#              --model silero=FOLDER": those too, which no package holds), and the perplexity of language models
# make emulated  the kernels on an ARM processor that qemu emulates: their bytes (needs Debian; half an hour)
# make faults  an error, a call that comes short, a signal or a kill at every call of the system that a command makes
# make fuzz    damaged files of every kind, and arrays and schemes, for ten minutes each (SECONDS=30 TARGET=gguf: fewer;
#              with atheris installed in the environment, guided by the code that is reached); findings go to .fuzz/
# make load    files, tensors and shards by the thousand, a tensor of 16 GiB of holes, 64 runs at once
# make sanitize  the kernels and their tests under AddressSanitizer and UndefinedBehaviorSanitizer (GCC, cmake)
# make wheels  a wheel for this kind of machine in dist/, tried in an empty environment; cibuildwheel makes the others
# make golden  freeze what this version writes: native files, and digests of the outputs of some commands
# make mutate  710 small changes of the code, each against the tests of its module: what they miss (MUTATE: areas)
# make peers   real clients load our files, generate and say what they see; make peers-fast: those that start quickly

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers

.PHONY: demo test check lint docs bench bench-peers bench-quality bench-urls emulated faults fuzz golden load mutate \
	peers peers-fast sanitize wheels clean

SOURCES := pyproject.toml $(wildcard quantcli/kernels/*.cpp quantcli/kernels/*.h) quantcli/kernels/CMakeLists.txt
PIP = $(BIN)/python -m pip --disable-pip-version-check

$(BIN)/.package: $(SOURCES)
	@echo "Making a virtual environment in $(VENV), and building quantcli with what it needs to run (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .
	@touch $@

$(BIN)/.installed: $(SOURCES)
	@echo "Making a virtual environment in $(VENV), and building quantcli with what its tests need (a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .[dev]
	@touch $(BIN)/.package $@

$(PEERS)/%/.installed: tests/peers/environments.py
	$(PYTHON) tests/peers/environments.py $* --environments $(PEERS)
	touch $@

LLAMA := out/tiny-llama-w4
DIGITS := out/digits-w4g64.safetensors

demo: $(BIN)/.package
	@mkdir -p out
	@echo; echo "A small Llama to 4 bits, in a folder that vLLM and transformers load:"; echo
	$(BIN)/quantcli quantize sample_models/tiny-llama --bits 4 --group-size 64 -o $(LLAMA) --force
	@echo; echo "Its loss on text it has not seen, before and after:"; echo
	$(BIN)/python sample_models/evaluate.py sample_models/tiny-llama $(LLAMA)
	@echo; echo "A classifier of digits in one file, measured again from its codes against the original:"; echo
	$(BIN)/quantcli quantize sample_models/digits.safetensors --bits 4 --group-size 64 -o $(DIGITS) --force -q
	$(BIN)/quantcli report $(DIGITS) --against sample_models/digits.safetensors
	$(BIN)/python sample_models/evaluate.py sample_models/digits.safetensors $(DIGITS)

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -n auto --cov --cov-report= $(TESTS)

docs: $(BIN)/.installed
	$(BIN)/python tests/write_tables.py

BENCH = $(BIN)/python tests/bench/bench.py $(BENCH_OPTIONS)

bench: $(BIN)/.installed
	$(BENCH) --write
	$(BIN)/python tests/write_tables.py

bench-peers: $(BIN)/.installed $(PEERS)/current/.installed $(PEERS)/llamacpp/.installed
	$(BENCH) --peers $(PEERS) --runs 3 --write

bench-urls: $(BIN)/.installed
	$(BIN)/python tests/bench/urls.py

QUALITY := current llamacpp hqq modelopt comfyui gptqmodel

bench-quality: $(BIN)/.installed $(QUALITY:%=$(PEERS)/%/.installed)
	$(BIN)/python tests/bench/quality.py --peers $(PEERS) --write
	$(BIN)/python tests/bench/rounding.py --peers $(PEERS) --write $(BENCH_OPTIONS)
	$(BIN)/python tests/bench/perplexity.py --peers $(PEERS) --write
	$(BIN)/python tests/write_tables.py

emulated:
	$(PYTHON) tests/kernels/emulated.py .aarch64

faults: $(BIN)/.installed
	FAULTS=all $(BIN)/python -m pytest -n auto tests/test_faults.py tests/test_interrupts.py

fuzz: $(BIN)/.installed
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),600) $(addprefix --target ,$(TARGET))

sanitize: $(BIN)/.installed
	$(BIN)/python tests/kernels/sanitized.py .sanitized

wheels:
	$(PYTHON) tests/wheels.py dist

load: $(BIN)/.installed
	LOAD=all $(BIN)/python -m pytest tests/test_load.py

golden: $(BIN)/.installed
	$(BIN)/python tests/golden/write_native.py
	$(BIN)/python tests/golden/write_outputs.py

mutate: $(BIN)/.installed
	PYTHONPATH=tests $(BIN)/python -m mutation.run $(MUTATE)

peers: $(BIN)/.installed
	$(BIN)/python tests/peers/run.py --environments $(PEERS)

peers-fast: $(BIN)/.installed
	$(BIN)/python tests/peers/run.py --environments $(PEERS) --fast

clean:
	rm -rf $(VENV) .venv-3.* .aarch64 .fuzz .sanitized $(PEERS) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
