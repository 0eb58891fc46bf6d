# make help lists the commands. PYTHON=python3.12 make run chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.requirements
DEV_READY := $(VENV)/.requirements-dev
SOAK_MINUTES ?= 30

# The seed of the generated tests; SEED=... repeats a run.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
export SEED
export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory

# program:package of everything that the integration tests use beside Python
DEBIAN := bwrap:bubblewrap prometheus:prometheus amtool:prometheus-alertmanager \
	chromium:chromium \
	chromedriver:chromium-driver gcc:gcc,libc6-dev

# Model environments are built by uv, which does not read pip's settings: pass on where pip finds
# further wheels, unless the setting was made by hand.
WITH_LINKS = PERSEPHONE_WHEEL_LINKS="$${PERSEPHONE_WHEEL_LINKS-$$( \
	{ $(BIN)/python -m pip config get :env:.find-links || \
	$(BIN)/python -m pip config get global.find-links; } 2>/dev/null | tr -s ' \n' ',' | \
	sed 's/,$$//')}"

.PHONY: help run demo check test e2e dashboards soak audit bench bench-serving clean debian
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: $(RUN_READY) ## install what is needed and start the service
	@$(WITH_LINKS) exec $(BIN)/python -m server

demo: $(RUN_READY) ## start the service, ship a model, send predictions, show the figures
	@$(WITH_LINKS) exec $(BIN)/python examples/demo.py

check: $(DEV_READY) ## format, lint, types, imports, quick tests
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "seed: $(SEED)"
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not e2e" --hypothesis-seed=$(SEED)

e2e: $(DEV_READY) ## tests with model environments, Prometheus, Chromium
	@echo "seed: $(SEED)"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m e2e --hypothesis-seed=$(SEED)

test: ## everything that checks the project
	@$(MAKE) debian
	@$(MAKE) check
	@$(MAKE) e2e

dashboards: $(DEV_READY) ## write the JSON of Grafana's dashboards
	@$(BIN)/python -m metrics.dashboards

soak: $(DEV_READY) ## repeat the tests with new seeds for SOAK_MINUTES (30)
	@end=$$(( $$(date +%s) + $(SOAK_MINUTES) * 60 )); \
	while [ "$$(date +%s)" -lt "$$end" ]; do \
		seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo "seed: $$seed"; \
		SEED="$$seed" TEST_KILLS=40 TEST_FUZZ=10 TEST_FAULTS=5 \
			$(BIN)/python -m pytest -q -x --hypothesis-seed="$$seed" || exit 1; \
	done

audit: $(DEV_READY) ## ask for known vulnerabilities of all packages, where they can be asked for
	@$(BIN)/python -m tests.support.audit

bench: $(DEV_READY) ## run every benchmark; each prints its ratios
	@for program in $$(grep -l '__main__' benchmarks/*.py); do \
		echo "== $$program"; $(WITH_LINKS) $(BIN)/python "$$program" || exit 1; \
	done
	@echo "== benchmarks/serving"; $(WITH_LINKS) $(BIN)/python -m benchmarks.serving

bench-serving: $(DEV_READY) ## measure serving beside its peers and write docs/benchmarks.md
	@$(WITH_LINKS) $(BIN)/python -m benchmarks.serving --docs $(SERVING)

clean: ## remove .venv and caches; the data folder stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is missing is installed where that is allowed; else the tests that need it say so by name.
debian:
	@missing=""; \
	for pair in $(DEBIAN); do \
		command -v "$${pair%%:*}" > /dev/null || missing="$$missing $$(echo "$${pair#*:}" | tr , ' ')"; \
	done; \
	$(PYTHON) -c 'import ensurepip' 2> /dev/null || missing="$$missing python3-venv"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing$$missing"; \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get -qq -o DPkg::Lock::Timeout=120 update && apt-get -qq -y -o DPkg::Lock::Timeout=120 \
			install --no-install-recommends $$missing > /dev/null; } \
			|| echo "not installed:$$missing; the tests that need them are skipped"; \
	else \
		echo "some tests are skipped; to run them: sudo apt-get install$$missing"; \
	fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name it with PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || { \
		echo "sudo apt-get install -y python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The path file makes the checkout importable from everywhere, also for python -P.
$(RUN_READY): requirements.txt | $(BIN)/python
	@echo "installing requirements.txt into $(VENV)"
	@$(BIN)/python -m pip install -qq --requirement requirements.txt
	@$(BIN)/python -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), \
		"persephone.pth").write_text(sys.argv[1] + "\n")' "$(CURDIR)"
	@touch $@

$(DEV_READY): requirements-dev.txt requirements-tracing.txt $(RUN_READY)
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(BIN)/python -m pip install -qq --requirement requirements-dev.txt
	@touch $@
