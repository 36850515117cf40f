# `make demo` and `make test` make what they need. Needs Python 3.11 to 3.13, make and git.
# Paths are relative throughout, so that a folder with spaces in its name works.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo "$$p" && break; done)
BIN := .venv/bin
READY := .venv/.ready
LABEL_STUDIO_READY := .venv-label-studio/.ready
CHECKED := labeling reward ppo flows tests examples benchmarks

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench faults clean setup .venv .venv-label-studio

demo: setup
	$(BIN)/rankloop demo

test: setup
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/seeds.py --seeds 0-4

# Kills in every step, interruptions in most, and damage; the last line says how many passed and failed.
faults: setup
	$(BIN)/python -m tests.faults

clean:
	-@if [ -x $(BIN)/rankloop ]; then $(BIN)/rankloop down; fi
	rm -rf .venv .venv-label-studio *.egg-info build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY) $(LABEL_STUDIO_READY)

# Rankloop's own environment; torch first, since everything else waits for it.
$(READY): pyproject.toml constraints.txt
	$(call need_python)
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# Label Studio's server cannot share an environment with Prefect.
$(LABEL_STUDIO_READY): infra/constraints-label-studio.txt
	$(call need_python)
	[ -x .venv-label-studio/bin/python ] || "$(PYTHON)" -m venv .venv-label-studio
	.venv-label-studio/bin/python -m pip install --quiet \
		-c infra/constraints-label-studio.txt label-studio
	touch $@

.venv: $(READY)
.venv-label-studio: $(LABEL_STUDIO_READY)

define need_python
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 is needed" >&2; exit 1; }
endef
