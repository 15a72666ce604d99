# Fury. `make run` for a first run, `make test` for everything that is tested; nothing else has to be set up by hand.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHUNK_MB ?= 20
MINUTES ?= 1

.PHONY: help setup run teardown lint test soak packages lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(VENV)/.controller ## make .venv from the hash-locked requirements, and the agent's trees

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make setup: %s is Python %d.%d, 3.11 or newer is needed; name one: make setup PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	@$(PYTHON) -m venv $(VENV) || { echo "make setup: $(PYTHON) can't make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.controller: requirements/controller.txt requirements/agent.txt | $(VENV)/bin/python
	@echo "setting up .venv (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/controller.txt
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

test: packages $(VENV)/.dev ## everything that is tested
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

soak: packages $(VENV)/.dev ## 30 minutes of random faults on real hosts (MINUTES=…, SEED=…)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults.soak --minutes $(if $(filter command%,$(origin MINUTES)),$(MINUTES),30) $(if $(SEED),--seed $(SEED))

# Debian packages that the tests run beside Fury; only as root on Debian-like systems, elsewhere such tests skip and say why.
packages:
	@missing=$$(for p in $$(cat tests/packages.txt tests/hosts/packages.txt); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing Debian packages for the tests:" $$missing; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif [ -n "$$missing" ]; then echo "not installed (needs root on Debian), tests that need them will skip:" $$missing; fi

lock: $(VENV)/.dev ## lock the requirements again
	@for f in agent collector controller dev; do \
	  $(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --allow-unsafe --no-header \
	    -o requirements/$$f.txt requirements/$$f.in; done

clean: ## remove .venv and everything built; results stay
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .hypothesis
