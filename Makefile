# Every target works from a fresh clone on a machine with Python >= 3.11, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ATTACK := sign_flip(num_byzantine=2, scale=10.0)
DEMO_STRATEGIES := fedavg; krum(num_byzantine=2); trimmed_mean(fraction=0.2)

.PHONY: help install demo deploy-demo test test-long lint format fast clean

help:
	@echo "make demo     install, then FedAvg, Krum and trimmed mean with two hostile clients of ten"
	@echo "make deploy-demo  install, then five real processes with TLS and keys, two of them killed"
	@echo "make test     install, then every test but the long ones"
	@echo "make test-long  those: nodes killed in each stage, a million parameters, encryption simulated"
	@echo "make fast     the tests that start no Flower processes"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make format   let ruff rewrite the code"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt examples/third_party_plugin/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[simulation,datasets,he,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt \
		examples/third_party_plugin
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt \
		byzfl
	touch $@

demo: install
	$(BIN)/fl-plugins compare --num-supernodes 10 --num-rounds 20 --attack "$(DEMO_ATTACK)" \
		--strategies "$(DEMO_STRATEGIES)"

deploy-demo: install
	$(BIN)/python examples/deployment/demo.py

# Those that start Flower's processes wait for these most of the time: three at once, and one by one.
test: fast
	$(BIN)/python -m pytest -m "e2e and not long" -n 2 --dist load --maxschedchunk 1

test-long: install
	$(BIN)/python -m pytest -m long

fast: install
	$(BIN)/python -m pytest -m "not e2e" -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist runs
