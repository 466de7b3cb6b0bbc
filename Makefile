# The front door. `make run` and `make test` do all of their own set-up.

EXAMPLE ?= smollm2
ARGS ?=
BIN := .venv/bin
# What scripts/system.sh installs where there is none.
GO := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rljob/golang/go/bin
# Tests at a time (tests/workers.py): what a cluster's tests wait for goes on beside what computes. Chosen tests run one after another.
WORKERS ?= $(if $(ARGS),1,2)

.PHONY: help setup run test lint bench lock crd docs chart clean cluster cluster-down cluster-programs images gpu-check

help:
	@echo "make run [EXAMPLE=smollm2|arithmetic|code|reward-model|tiny] [ARGS=--fresh]   train an example on this machine"
	@echo "make test [ARGS=\"tests/trainer -k gap\"]                     lint, types, import contracts, all tests, two at a time; or these"
	@echo "make setup                                                  make .venv, so that .venv/bin/rljob works"
	@echo "make bench                                                  run every benchmark"
	@echo "make images [ARGS=\"--only master\"]                          build the container images"
	@echo "make gpu-check                                              try the GPU path on a machine with one NVIDIA GPU"
	@echo "make lint                                                   what of the tests takes seconds"
	@echo "make cluster [ARGS=--nodes=2] / make cluster-down           a real Kubernetes on this machine, from source; needs root"
	@echo "make cluster-programs / make clean                          build that Kubernetes beforehand / remove what setup and tests have made here"
	@echo "make lock / make crd                                        remake the lock file / the CustomResourceDefinition"
	@echo "make chart / make docs                                      remake what of charts/ and docs/ is made from them"

setup:
	@sh scripts/setup.sh

run: setup
	@$(BIN)/rljob run examples/$(EXAMPLE)/rljob.yaml $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A thread that waits for another of its own leaves the processor to the other test.
test: lint
	@sh scripts/system.sh
	PATH="$$PATH:$(GO)" OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest $(ARGS) $(if $(filter-out 1,$(WORKERS)),--numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder)

bench: setup
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

gpu-check:
	@sh scripts/gpu-check.sh

cluster: setup
	@sh scripts/system.sh
	@$(BIN)/python -m tests.cluster up $(ARGS)

cluster-down: setup
	@$(BIN)/python -m tests.cluster down

cluster-programs: setup
	@sh scripts/system.sh
	@$(BIN)/python -m tests.cluster build

images:
	@sh scripts/images.sh $(ARGS)

lock:
	@sh scripts/lock.sh

crd: setup
	$(BIN)/rljob crd > crds/rljobs.rljob.dev.yaml

docs: setup
	$(BIN)/python -m rljob.api.reference > docs/crd-reference.md

# What of charts/ is made from the models, from crds/, and by rendering.
chart: crd docs
	$(BIN)/python -m charts.generate

clean:
	rm -rf .venv .venv-gpu .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
