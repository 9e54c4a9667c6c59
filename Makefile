# make        tells what there is
# make demo   shows the whole thing; needs python3 >= 3.11 with venv, make, and the network once

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Tests run against servers from packages. STACK=containers runs the same tests against those of docker-compose.yml, and that file as a whole;
# STACK=secure those that need servers against a stack with TLS, logins and least rights.
STACK  ?= local
export STACK
# The tests start hundreds of Python processes: what is compiled stays compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.SILENT:
.PHONY: help install test suite check quick chaos alerts fuzz mutants lint format types layers demo up down bench peers docs screenshots requirements sbom advisories clean

# A virtual environment holds absolute paths: one that was copied here from elsewhere, or that lost its Python, is made anew.
ifneq ($(shell test ! -e $(STAMP) || { test "$$(cat $(STAMP))" = "$$(pwd -P)" && test -x $(BIN)/python; } || rm -rf $(VENV) 2>&1 || echo kept),)
$(error $(VENV) was made for another folder or Python, and this user cannot delete it: delete it, or clone the project anew)
endif

help: ## Tell what there is (this)
	printf '\nmake demo shows everything; make test proves it.\n\n'
	sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-24s %s\n' "  $$name" "$$what"; done
	printf '\n'

# With uv: a tenth of pip's time. Modules are compiled here, as pip does: not every user may write into $(VENV).
by_uv = cache="$$($(1) cache dir)"; mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" || export UV_NO_CACHE=1; \
  { test -x $(BIN)/python || $(1) venv -q --python "$$(command -v "$(PYTHON)")" $(VENV); } && \
  $(1) pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.txt && \
  PYTHONWARNINGS=ignore $(1) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
# Where pip is told of an index or a proxy, of which uv knows nothing, pip does it all.
own_uv = ! $(BIN)/python -m pip config list 2>/dev/null | grep -Eq 'index|proxy|trusted-host|client-cert' && \
  sed -n '/^uv==/,/\# via/p' requirements.txt > $(VENV)/uv.txt && \
  $(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes --no-deps -r $(VENV)/uv.txt >/dev/null 2>&1

install: $(STAMP) ## Make .venv from the pinned requirements, with the orders command in it

$(STAMP): requirements.txt pyproject.toml
	"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "This needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	here="$$(pwd -P)"; for folder in . $(VENV); do test ! -e $$folder || test -w $$folder || { \
	  echo "$$here/$$folder cannot be written to by this user; clone the project into a folder of your own" >&2; exit 1; }; done; \
	test -x .ci/run || { echo "Programs cannot be run from $$here (mounted noexec?); clone the project into another folder" >&2; exit 1; }; \
	case "$$here" in *:*) echo "$$here has a colon in its name, with which Python makes no virtual environment; rename it" >&2; exit 1;; esac
	echo "Installing the pinned packages into $(VENV) (once, a minute or two)"
	if command -v uv >/dev/null 2>&1; then \
	  $(call by_uv,uv); \
	else \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	  { $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; } && \
	  if { $(own_uv) && $(call by_uv,$(BIN)/uv); } 2>$(VENV)/uv.log; then :; else \
	    $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.txt && \
	    PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	  fi; \
	fi
	# Side by side: each takes one processor.
	$(BIN)/python -m stack & $(BIN)/python -m compiled; compiled=$$?; \
	wait $$! || echo "Going on without: the first start of the stack fetches them."; exit $$compiled
	printf '%s' "$$(pwd -P)" > $@

# Of pytest. More than processors, since a test on servers also waits.
PROCESSES ?= 4
SECURE := tests/contract tests/integration tests/e2e tests/chaos/test_mini.py

# Two at once, in this order: types are checked beside the tests, which don't take all of the processors' time.
test: $(STAMP) ## Everything that proves it: lint, types, layers, all tests (STACK=containers: in containers; STACK=secure: with TLS and logins)
	$(BIN)/python -m compiled
	$(MAKE) --no-print-directory -j 2 lint layers types suite

check: $(STAMP) ## What to run while working: lint, types, layers, tests without servers; a minute
	$(MAKE) --no-print-directory -j 2 lint layers types quick

# Not before lint and layers, which take seconds. What tests start is no part of this make.
suite: $(STAMP) lint layers
	unset MAKEFLAGS MFLAGS MAKELEVEL; $(BIN)/pytest $(if $(filter containers,$(STACK)),,-n $(PROCESSES) --dist worksteal) --durations 20 $(if $(filter secure,$(STACK)),$(SECURE))

quick: $(STAMP) lint layers
	unset MAKEFLAGS MFLAGS MAKELEVEL; ORDERS_COMPILED=off PROPERTY_SHARE=4 $(BIN)/pytest -n 2 --dist worksteal tests/unit tests/property

chaos: $(STAMP) ## Break everything on purpose, under load, and audit what is left (MINUTES=5 SEED=7 FAULTS=a,b; FAULTS=list names them)
	$(BIN)/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))

alerts: $(STAMP) ## Give each alert its cause, under a real Prometheus and Alertmanager; minutes (DIVISOR=6: seconds to wait, divided; ALERTS=A,B: these alone)
	ALERTS_OF='$(ALERTS)' ALERTS_DIVISOR=$(or $(DIVISOR),1) $(BIN)/pytest -m 'monitoring and long' tests/alerts

lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/yamllint -s docker-compose.yml deploy/helm/orders-stream/Chart.yaml deploy/helm/orders-stream/values.yaml deploy/prometheus

format: $(STAMP) ## Mend style and format where a machine can
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .

types: $(STAMP) ## Check types, strictly
	$(BIN)/mypy --no-error-summary

layers: $(STAMP) ## Check who imports whom
	$(BIN)/lint-imports --no-logo

fuzz: $(STAMP) ## Simulate histories of failures until one fails (HISTORIES=N, SEED=S, MINUTES=M)
	$(BIN)/python -m tests.simulation $(if $(HISTORIES),--histories $(HISTORIES)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

mutants: $(STAMP) ## Plant bugs, and show what notices each (also tests/mutants/results.json)
	$(BIN)/python -m tests.mutants --write tests/mutants/results.json

demo: $(STAMP) ## Start the servers, stream thousands of orders, show and audit the result, stop the servers
	$(BIN)/orders demo

up: $(STAMP) ## The same, and leave everything running
	$(BIN)/orders demo --keep

down: $(STAMP) ## Stop what `make up` left running; the data stays
	$(BIN)/orders demo --stop

bench: $(STAMP) ## Measure events/s, latency and where the time goes
	$(BIN)/orders bench

peers: $(STAMP) ## Measure the same beside other ways to do a part of it (ORDERS=N for a quick try, ONLY=a,b)
	$(BIN)/python -m benchmarks.peers $(if $(ORDERS),--orders $(ORDERS) --seconds 5) $(if $(ONLY),--only $(ONLY))

docs: $(STAMP) ## Write docs/events.md, docs/reference/, contracts/ and Grafana's dashboard again from the code
	$(BIN)/orders events > docs/events.md
	$(BIN)/python -m reference.metrics > docs/reference/metrics.md
	$(BIN)/python -m reference.dashboard > deploy/grafana/orders.json
	$(BIN)/orders events --write contracts

screenshots: $(STAMP) ## Take docs/images/console anew, from the tests in a browser
	mkdir -p docs/images/console
	SCREENSHOTS=docs/images/console $(BIN)/pytest -n 0 tests/integration/test_console_browser.py

requirements: ## Compile requirements*.txt anew from pyproject.toml, and the peers'
	$(BIN)/uv pip compile -q $(COMPILE) --all-extras pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q $(COMPILE) --constraint requirements.txt --extra otel pyproject.toml -o requirements-worker.txt
	for file in benchmarks/peers/requirements/*.in; do $(BIN)/uv pip compile -q $(COMPILE) --no-annotate $$file -o $${file%.in}.txt || exit; done

COMPILE := --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11

sbom: $(STAMP) ## Write what the workers' image is made of to build/sbom.cdx.json (CycloneDX)
	mkdir -p build
	$(BIN)/python -W ignore -m cyclonedx_py requirements requirements-worker.txt --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --output-format JSON --output-file build/sbom.cdx.json
	echo "build/sbom.cdx.json names the Python packages of requirements-worker.txt, with their hashes"

advisories: $(STAMP) ## Compare the image's packages with known advisories (STRICT=1: fail where their service can't be reached)
	$(BIN)/python -m tests.deploy.advisories $(if $(STRICT),--strict)

clean: ## Remove caches and build output (the stack's data and .venv stay)
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
