# `make demo` and `make test` work from a fresh clone with nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test lint docs slow mutations smoke wheel resolve clean

demo: $(STAMP)
	$(BIN)/secateur prune embedded --sites channel --sparsity 0.25 --calibrate stdlib --samples 32 --out out/demo --overwrite
	$(BIN)/secateur generate out/demo "for i in range(" --against embedded --tokens 20
	$(BIN)/secateur show out/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

mutations: $(STAMP)
	$(BIN)/python scripts/mutations.py --jobs 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/source_tree.py --check
	$(BIN)/python scripts/json_schemas.py --check
	$(BIN)/python scripts/readme_figures.py --check
	$(BIN)/python scripts/expect_tables.py --check
	$(BIN)/python scripts/embedded_figures.py --check

# The documentation as a site in out/site. The variable silences a notice of the theme about its successor.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open out/site/index.html"

# What an installed wheel gives, away from the clone.
smoke: $(STAMP)
	$(BIN)/python scripts/smoke.py

wheel: $(STAMP)
	$(BIN)/python -m hatchling build -t wheel

# Whether constraints.txt can be installed on every Python that pyproject.toml promises; asks the package index.
resolve: $(STAMP)
	$(BIN)/python scripts/resolve.py

# torch goes first and alone: its own spelling decides which build is installed, and so how much is fetched.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "$(PYTHON) is Python %d.%d; Secateur needs 3.11 or newer: make PYTHON=python3.11" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache
