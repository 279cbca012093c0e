# Two commands: `make run` and `make test`. Python 3.11 or newer and make are all they need:
# Node, wrangler and workerd are installed from package registries into this folder.

PYTHON ?= python3
PORT ?= 8787
PRODUCT ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
READY := $(STAMPS)/python $(STAMPS)/worker $(STAMPS)/node

.DELETE_ON_ERROR:
.PHONY: help setup .installed run demo token chaos rolling api attack volume test slow models docs reset schema lint format types bench bench-host bench-beside bench-formats clients chromium deploy deploy-check clean FORCE

help:
	@echo "make run           start the Worker at http://localhost:$(PORT) (PORT=, PRODUCT=legal)"
	@echo "make token         print a token (SCOPE='turns operate', TENANT=acme, SUB=ann, DAYS=30)"
	@echo "make demo          watch a Worker die in the middle of an answer, and the answer survive"
	@echo "make test          run the tests, those inside workerd too (ARGS='-k name')"
	@echo "make slow          run the tests that make test leaves out, since each takes long"
	@echo "make models        play recorded answers of model APIs to a Worker, and tell what came of them (ARGS=name)"
	@echo "make chaos         kill 5,000 workers in the middle of turns, and add up (ARGS='--kills 200')"
	@echo "make rolling       let an earlier version's code serve the same database, under kills (ARGS='--minutes 60')"
	@echo "make api           try the Worker by what /openapi.json says of it (ARGS='--phases fuzzing')"
	@echo "make attack        let one user attack an isolate, and print what it costs the others (ARGS=stalled)"
	@echo "make volume        count what each route reads with 100,000 turns in the database (ARGS='--turns 10000')"
	@echo "make docs          build the manual into site/, strictly: a link that leads nowhere is an error"
	@echo "make clients       try OpenAI's and the AI SDK's own clients, and a browser, with kills and cuts"
	@echo "make reset         forget the local database"
	@echo "make schema        write schema.sql from the code"
	@echo "make lint types    ruff, mypy --strict"
	@echo "make bench         measure, and write bench/RESULTS.md"
	@echo "make bench-host    measure what the platform's timers cost here, and write bench/HOST.md"
	@echo "make bench-beside  measure beside an earlier commit's code (ARGS='--commit 86a99b5')"
	@echo "make bench-formats measure what a turn costs for the clients of others, and write bench/FORMATS.md"
	@echo "make deploy        check a product, then let pywrangler deploy it (PRODUCT=legal)"
	@echo "make deploy-check  say what would fail, and upload nothing (PRODUCT=, DRY_RUN=1 asks no account)"

# One set-up at a time: `make run` beside `make demo` waits for it instead of breaking it.
setup:
	@$(PYTHON) dev/locked.py dev/.build/setup.lock $(MAKE) --no-print-directory GOALS="$(MAKECMDGOALS)" .installed

.installed: $(READY)
	@:

run: setup
	@exec $(BIN)/python -m dev.run --port $(PORT) $(if $(PRODUCT),--product $(PRODUCT))

token: setup
	@$(BIN)/python -m dev.local_token $(if $(SCOPE),--scope "$$SCOPE") $(if $(TENANT),--tenant "$$TENANT") \
		$(if $(SUB),--sub "$$SUB") $(if $(DAYS),--days "$$DAYS")

demo: setup
	@$(BIN)/python -m dev.demo

chaos: setup
	@PYTHONPATH=src $(BIN)/python -m tests.chaos $(ARGS)

rolling: setup
	@PYTHONPATH=src $(BIN)/python -m tests.rolling $(ARGS)

models: setup
	@PYTHONPATH=src $(BIN)/python -m tests.models $(ARGS)

api: setup
	@$(BIN)/python -m tests.api $(ARGS)

attack: setup
	@$(BIN)/python -m tests.attacks $(ARGS)

volume: setup
	@PYTHONPATH=src $(BIN)/python -m bench.volume $(ARGS)

# With the real clients, once they are installed: 40 s on a quiet machine, the first time. Where they cannot be, their
# tests are skipped, and say so.
test: setup
	@$(if $(ARGS),:,$(MAKE) --no-print-directory $(STAMPS)/clients) || echo "the real clients could not be installed"
	@$(BIN)/python -m dev.test $(ARGS)

slow: setup
	@$(BIN)/python -m dev.test --slow

# From an empty cache, so that a warning of an earlier build is a warning again.
docs: setup
	@$(BIN)/zensical build --clean --strict

# Only the local database; the secrets in .dev.vars stay.
reset:
	rm -rf .wrangler/state
	@echo "the local database is empty; make run creates it again"

# The copy that people read; its source is src/chatturn/database/schema.py.
schema: setup
	@$(BIN)/python -m dev.schema

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup
	$(BIN)/mypy dev src chatturn_testing clients/python tests $(if $(wildcard bench/*.py),bench)

# The clients of others: 800 MB in a folder of their own, and a Chromium, which is Debian's.
CLIENTS := tests/clients

clients: setup $(STAMPS)/clients
	@command -v chromium >/dev/null || $(MAKE) chromium
	@CLIENTS_TABLE=dev/.build/clients.md $(BIN)/python -m dev.test $(CLIENTS) $(ARGS)

chromium:
	@echo "The tests with a browser need Debian's Chromium (90 MB to download) …"
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null

$(STAMPS)/clients: $(CLIENTS)/requirements.txt $(CLIENTS)/package-lock.json $(CLIENTS)/bundle.mjs $(wildcard $(CLIENTS)/pages/*.js) examples/openai_sdk.mjs | setup
	@echo "OpenAI's, LangChain's, LiteLLM's and the AI SDK's clients, and Deno, into $(CLIENTS) (800 MB) …"
	@$(PYTHON) -m venv $(CLIENTS)/.venv
	@$(CLIENTS)/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r $(CLIENTS)/requirements.txt
	@cd $(CLIENTS) && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
	@cd $(CLIENTS) && "$(CURDIR)/$(BIN)/node" bundle.mjs
	@touch $@

bench: setup
	$(BIN)/python -m bench.run $(ARGS)

bench-host: setup
	$(BIN)/python -m bench.host

bench-beside: setup
	$(BIN)/python -m bench.beside $(ARGS)

bench-formats: setup
	$(BIN)/python -m bench.formats

deploy: setup
	@test -z "$(DRY_RUN)" || { echo "make deploy uploads: say make deploy-check DRY_RUN=1 to upload nothing"; exit 2; }
	@test -n "$(PRODUCT)" || { echo "which product? make deploy PRODUCT=legal"; exit 1; }
	@$(BIN)/python -m dev.deploy --product '$(PRODUCT)'

deploy-check: setup
	@$(BIN)/python -m dev.deploy --check $(if $(PRODUCT),--product '$(PRODUCT)') $(if $(DRY_RUN),--dry-run)

# Everything the commands above made, the local database and the local secrets excepted.
clean:
	rm -rf $(VENV) python_modules dev/node_modules dev/.build site .cache $(CLIENTS)/.venv $(CLIENTS)/node_modules

$(STAMPS)/python: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(GOALS)"; exit 1; }
	@echo "[1/3] Python tools and Node into $(VENV) (100 MB to download, a minute or two) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		-r requirements-dev.txt
	@mkdir -p $(STAMPS) && touch $@

# The stamps say what was installed; a folder that somebody removed is installed again.
$(STAMPS)/worker: requirements-worker.txt $(if $(wildcard python_modules/workers),,FORCE) | $(STAMPS)/python
	@echo "[2/3] the Worker's own packages into python_modules …"
	@rm -rf python_modules
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		--no-deps --no-compile --target python_modules -r requirements-worker.txt
	@touch $@

$(STAMPS)/node: dev/package-lock.json dev/package.json $(if $(wildcard dev/node_modules/wrangler),,FORCE) | $(STAMPS)/python $(STAMPS)/worker
	@echo "[3/3] wrangler, workerd and Pyodide into dev/node_modules (70 MB to download) …"
	@cd dev && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
	@$(BIN)/python -m dev.prepare
	@touch $@
