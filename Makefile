# `make` lists the targets. Everything is made inside this folder: .venv, .cache (the engine), .lab (simulated hosts).
SHELL := bash
PYTHON ?= python3
VENV := .venv/bin/python
# A link that leads nowhere fails it.
SITE = $(VENV) -m sphinx --fresh-env --fail-on-warning --nitpicky --quiet --conf-dir docs/site .
SCENARIO ?= rtx5090
# Tests run on all processors, more than two to each on a small machine (tests/conftest.py).
WORKERS ?= auto
# The tests start hundreds of Pythons; without this, each would have to compile the program again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help .ready .engine up down preview pull-request-preview outputs test test-lab test-nightly test-plain test-fast test-metal test-metal-core test-node test-windows lint format snapshots docs bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 32

up: .ready ## start a simulated Proxmox VE host and run the real `pulumi up` on it (SCENARIO=rtx5090)
	@$(VENV) -m lab.deploy up $(SCENARIO)

preview: .ready ## show what `make up` would do
	@$(VENV) -m lab.deploy preview $(SCENARIO)

outputs: .ready ## show the stack's outputs
	@$(VENV) -m lab.deploy outputs $(SCENARIO)

pull-request-preview: .venv/.program ## write the preview of STACK to OUTPUT as Markdown, without the host or its key
	@engine=$$($(VENV) lab/engine/install.py --print-env) && eval "$$engine" && \
	  $(VENV) -m homelab.pull_request --stack "$(or $(STACK),homelab)" --output "$(or $(OUTPUT),preview.md)"

down: .ready ## run `pulumi destroy` and stop the simulated host
	@$(VENV) -m lab.deploy down $(SCENARIO)

PYTEST = $(VENV) -m tests.scratch -m pytest -n $(WORKERS) --dist worksteal

test: .venv/.dev ## run the tests of the program, without those of test-metal and test-windows
	@$(PYTEST) --ignore tests/simulator tests

test-lab: .venv/.dev ## run the tests of the simulated hosts, and of what makes the tests quick
	@$(PYTEST) tests/simulator

# One after the other, as each uses all processors, and the others also if one fails.
test-nightly: export HOMELAB_EVERY_CUT := 1
# With every sample some tests take longer than the limit of pyproject.toml.
test-nightly: export PYTEST_ADDOPTS := --timeout 7200
# That it measures, not how fast it is.
test-nightly: export BENCH := --rounds 1 --memory-rounds 1 --hosts 1
test-nightly: export HOMELAB_SHARD := $(SHARD)
test-nightly: ## run both with every sample: a kill, a power cut and a full disk at each moment (hours; SHARD=3/8: an eighth); and bench, once
	@$(MAKE) --no-print-directory --keep-going test test-lab $(if $(filter-out 1/%,$(SHARD)),,bench)

# One part each of tests/e2e and tests/lab, and what else starts a lab or the engine as they do.
PLAIN_PARTS := $(patsubst tests/%.py,.plain/%.passed,$(wildcard $(patsubst %,tests/%/test_*.py,e2e lab)) \
  tests/engine/test_settings_file.py tests/unit/test_deploy.py)

test-plain: .venv/.dev ## test without what makes the suite quick (75 minutes; a second call goes on)
	@$(MAKE) --silent --keep-going --jobs $(or $(JOBS),2) $(PLAIN_PARTS); \
	  status=$$?; for part in $(basename $(PLAIN_PARTS)); do \
	    [ -e $$part.passed ] && result=passed || result=failed; \
	    echo "$$result: $${part#.plain/}$$(sed -n 's/^=* \(.*\) in \([0-9.]*s\).*=$$/: \1, \2/p' $$part.log)"; done; \
	  [ $$status = 0 ] && rm $(PLAIN_PARTS); exit $$status

.plain/%.passed:
	@mkdir -p $(@D)
	@HOMELAB_PLAIN=1 $(VENV) -m tests.scratch -m pytest --timeout 3600 tests/$*.py >$(@D)/$(*F).log 2>&1
	@touch $@

test-fast: .venv/.dev ## run the quick tests, of what is decided: a minute on two processors
	@$(VENV) -m pytest -n $(WORKERS) --dist worksteal -m "not slow" tests/unit

test-metal: .venv/.dev ## test on a real kernel, a Debian under QEMU (Linux; an hour; CUTS=50 SEED=7: more power cuts)
	@$(VENV) -m tests.metal.prerequisites
	@$(VENV) -m pytest -m metal tests/metal

test-metal-core: .venv/.dev ## run only the part of test-metal from a stock host to a bound card
	@$(VENV) -m tests.metal.prerequisites
	@$(VENV) -m pytest -m core tests/metal

# Of the tier's options, each by a variable of its name.
NODE_OPTIONS = $(if $(CARD),--card "$(CARD)") $(if $(SLOW),--slow "$(SLOW)") $(if $(YES),--yes) $(if $(HOST_KEY),--host-key "$(HOST_KEY)") \
  $(if $(IDENTITY),--identity "$(IDENTITY)") $(if $(RECORD),--record "$(RECORD)") $(if $(ROADS),--roads "$(ROADS)")

test-node: .venv/.dev ## run roads on a throw-away Proxmox VE node: NODE=root@ADDRESS (docs/node.md; CARD=first SLOW=20 YES=1 RECORD=FOLDER)
	@$(VENV) -m tests.scratch -m tests.node "$(NODE)" $(NODE_OPTIONS)

test-windows: .venv/.dev ## test with Pulumi and Python for Windows, under Wine, on the simulated host (Linux)
	@$(VENV) -m tests.windows.prerequisites
	@$(VENV) -m pytest -m windows tests/windows

lint: .venv/.dev ## run formatters and linters, hold the project's numbers (CONTRIBUTING.md); change nothing
	@$(VENV) -m ruff format --check .
	@$(VENV) -m ruff check .
	@$(VENV) -m mypy .
	@$(VENV) -m mypy --python-version 3.10 --follow-imports silent --cache-dir .mypy_cache/3.10 remote_scripts
	@for system in win32 darwin; do $(VENV) -m mypy --platform $$system --follow-imports silent --cache-dir .mypy_cache/$$system __main__.py homelab components || exit 1; done
	@.venv/bin/lint-imports --no-cache | sed -n '/BROKEN/,$$p'; test $${PIPESTATUS[0]} = 0
	@$(VENV) -m tests.script_lint
	@$(VENV) -m tests.size
	@$(VENV) -m tests.protected
	@$(SITE) .site
	@.venv/bin/zizmor --offline --no-progress --quiet .github examples/github/*.yml
	@if command -v actionlint >/dev/null; then actionlint -shellcheck .venv/bin/shellcheck .github/workflows/*.yml examples/github/*.yml; fi
	@if command -v gofmt >/dev/null; then test -z "$$(gofmt -l lab/engine)" || { gofmt -d lab/engine; exit 1; }; fi

format: .venv/.dev ## format every file
	@$(VENV) -m ruff format .
	@$(VENV) -m ruff check --fix .
	@.venv/bin/shfmt -i 2 -ci -w $$(git ls-files 'remote_scripts/*.sh' tests/metal/guest)

snapshots: .venv/.dev ## rewrite the messages that tests expect whole, where they differ
	@$(VENV) -m tests.scratch -m pytest -n 0 --inline-snapshot=create,fix $$(git grep -l "^from inline_snapshot" tests) || \
	  [ $$? = 1 ]  # so pytest ends also where one was rewritten
	@git diff --stat tests

docs: .venv/.dev ## rewrite the tables in docs/ and the schemas, and build the site of all pages
	@$(VENV) -m docs.tables.settings
	@$(VENV) -m docs.tables.schema
	@$(VENV) -m docs.tables.nvidia
	@$(VENV) -m docs.tables.outputs
	@$(VENV) -m tests.hardware
	@$(SITE) .site
	@echo "the documents as a site: .site/index.html"

bench: .venv/.dev ## compare this program's speed with pyinfra and Ansible, as ratios
	@$(VENV) -m tests.bench $(BENCH)

lock: .venv/.dev ## update the pinned dependencies (requirements.txt, lab/requirements.txt, tests/requirements.txt)
	@before() { sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' "$$@"; printf -- '--constraint %s\n' "$$@"; }; \
	  compile=".venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url"; \
	  $$compile --custom-compile-command "make lock" pyproject.toml --output-file requirements.txt && \
	  $$compile --custom-compile-command "make lock" pyproject.toml --group lab $$(before requirements.txt) --output-file lab/requirements.txt && \
	  $$compile --custom-compile-command "make lock" pyproject.toml --group dev --group bench \
	    $$(before requirements.txt lab/requirements.txt) --output-file tests/requirements.txt

clean: ## stop the labs and remove everything made here, also the engine's cache
	@others=$$(find .lab -path '*/.pulumi/stacks/*.json' ! -name lab.json 2>/dev/null); [ -z "$$others" ] || { \
	  echo "wanted: nothing below .lab but simulated hosts"; echo "found:  states of other stacks: $$others"; \
	  echo "why:    a state knows what to give back on its host: without it, \`pulumi destroy\` can't"; \
	  echo "next:   \`pulumi stack export\` each, import it where your other stacks are, and remove its file"; exit 1; }
	@if [ -x $(VENV) ] && [ -d .lab ]; then for lab in .lab/*/; do $(VENV) -m lab stop --state "$$lab"; done; fi
	rm -rf .venv .cache .lab .plain .site .mypy_cache .ruff_cache .pytest_cache

# What a simulated host needs. The packages and the engine come side by side: one waits for the network while the other computes.
.ready: .venv/bin/python
	@$(MAKE) --silent --no-print-directory --jobs 2 .venv/.lab .engine || { \
	  [ -e .venv/.lab ] && PULUMI_HOME= $(VENV) lab/engine/install.py >/dev/null; exit 1; }  # what it lacks is said last

.engine: .venv/bin/python
	@PULUMI_HOME= $(VENV) lab/engine/install.py >/dev/null

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "wanted: Python 3.11 or later as \`$(PYTHON)\`"; echo "found:  $$($(PYTHON) --version 2>&1)"; \
	  echo "why:    the program is written for it"; echo "next:   install it, or: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "making .venv, once"
	@$(PYTHON) -m venv .venv

# $(call install,FILES,WHO): pip, with a line every five seconds that says how far it is. All FILES up to then, so that it can count. pip takes a
# package out before it puts a newer one in, and some were there before.
define install
@echo "installing what $(2) into .venv ($(lastword $(1))), once"
@all=$$(cat $(1) | grep -c ==); most=0; while sleep 5 >/dev/null 2>&1; do \
    now=$$(ls .venv/lib/*/site-packages | grep -c dist-info); most=$$((now > most ? now : most)); \
    echo "  $$((most < all ? most : all)) of at most $$all packages, $$SECONDS s"; done & \
  ticker=$$!; $(VENV) -m pip install --quiet --disable-pip-version-check --require-hashes $(patsubst %,-r %,$(1)) & \
  pip=$$!; trap "kill $$ticker $$pip 2>/dev/null" EXIT; wait $$pip
endef

.venv/.program: requirements.txt .venv/bin/python
	$(call install,requirements.txt,the program needs)
	@touch $@

.venv/.lab: lab/requirements.txt .venv/.program
	$(call install,requirements.txt lab/requirements.txt,the simulated host needs)
	@$(VENV) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: tests/requirements.txt .venv/.lab
	$(call install,requirements.txt lab/requirements.txt tests/requirements.txt,the tests and the linters need)
	@touch $@
