# `make demo` and `make test` need nothing but Python 3.11 or later: the rest is set up here.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint format bad-inputs float-tables clean

demo: $(READY)
	$(RUN)/speechquant demo --out demo-out

test: $(READY)
	$(RUN)/python -m pytest

# Minutes instead of seconds: the true-size models.
test-slow: $(READY)
	$(RUN)/python -m pytest -m slow --timeout 1800

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(READY)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bad-inputs: $(READY)
	$(RUN)/python tests/bad_inputs.py > docs/results/bad-inputs.md

# DATA='--data PATH/an4-train,hold_out=8' adds a set of real voices.
float-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.float_tables $(DATA) > docs/results/float.md

# PYTHONWARNINGS: without the build's warnings about what an editable installation is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	PYTHONWARNINGS=ignore $(RUN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[export,quantize,report,zoo,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
