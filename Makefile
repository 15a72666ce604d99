# Fury. `make run` for a first run, `make test` for everything that is tested; nothing else has to be set up by hand.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHUNK_MB ?= 20
MINUTES ?= 1
# An unpacked bundle brings its wheels: then the controller takes everything from there, and needs no network.
FROM := $(if $(wildcard wheels),--no-index --find-links wheels)
UNSERVED := echo "make setup: the wheels of this bundle could not be installed, pip says why above; docs/airgap.md tells which machines and Pythons they serve; then: make clean; make setup PYTHON=…" >&2; exit 1

.PHONY: help setup run teardown lint test soak credentials bundle sbom licences packages lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(VENV)/.controller ## make .venv from the hash-locked requirements, and the agent's trees

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make setup: %s is Python %d.%d, 3.11 or newer is needed; name one: make setup PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	@$(PYTHON) -m venv $(VENV) || { echo "make setup: $(PYTHON) can't make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.controller: requirements/controller.txt requirements/agent.txt | $(VENV)/bin/python
	@echo "setting up .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check $(FROM) --require-hashes -r requirements/controller.txt$(if $(FROM), || { $(UNSERVED); })
	@$(BIN)/python -m fury_controller.tree
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.controller
	@echo "setting up what lint and tests need (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

run: setup ## three agents on this machine: 20 MB chunks, 1 minute; more with ARGS="-e …"
	@PATH="$(CURDIR)/$(BIN):$$PATH" ansible-playbook run.yml -e chunk_mb=$(CHUNK_MB) -e minutes=$(MINUTES) $(ARGS)

teardown: setup ## take everything of Fury off the hosts of the inventory
	@PATH="$(CURDIR)/$(BIN):$$PATH" ansible-playbook teardown.yml

lint: $(VENV)/.dev ## ruff, mypy, ansible-lint, yamllint, shellcheck, and the generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline
	$(BIN)/yamllint --strict .
	shellcheck .ci/run
	$(BIN)/python -m grafana.build --check
	$(BIN)/python -m fury_controller.supply licences --check

test: packages $(VENV)/.dev ## everything that is tested
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

soak: packages $(VENV)/.dev ## 30 minutes of random faults on real hosts (MINUTES=…, SEED=…)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults.soak --minutes $(if $(filter command%,$(origin MINUTES)),$(MINUTES),30) $(if $(SEED),--seed $(SEED))

credentials: setup ## the read password and a ca.pem in credentials/, for a Prometheus that is started before the first run
	@$(BIN)/python -m fury_controller.trust

bundle: $(VENV)/.dev ## one archive in dist/ for controllers without Internet (docs/airgap.md)
	@$(BIN)/python -m fury_controller.bundle

sbom: $(VENV)/.dev ## what Fury consists of, in dist/ as CycloneDX JSON
	@$(BIN)/python -m fury_controller.supply sbom

licences: $(VENV)/.dev ## write docs/dependencies.md again
	@$(BIN)/python -m fury_controller.supply licences

# Debian packages that the tests run beside Fury; only as root on Debian-like systems, elsewhere such tests skip and say why.
packages:
	@missing=$$(for p in $$(cat tests/packages.txt tests/hosts/packages.txt) $$(command -v npm >/dev/null || echo nodejs npm); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing Debian packages for the tests:" $$missing; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif [ -n "$$missing" ]; then echo "not installed (needs root on Debian), tests that need them will skip:" $$missing; fi

lock: $(VENV)/.dev ## lock the requirements again
	@for f in agent collector controller parquet postgresql dev; do \
	  $(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --allow-unsafe --no-header \
	    -o requirements/$$f.txt requirements/$$f.in; done

clean: ## remove .venv and everything built; results stay
	rm -rf $(VENV) .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
