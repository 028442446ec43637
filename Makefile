# `make demo` and `make test` need nothing but Python 3.11 or later: the rest is set up here.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint format bad-inputs float-tables stablequant-tables \
	search-comparison calibration-cost clean

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

# Half an hour on two cores. DATA as above adds a set; WORK='--work FOLDER' lets a killed run go on.
stablequant-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.stablequant_tables --workers 2 $(WORK) $(DATA)

# Half an hour as well.
search-comparison: $(READY)
	$(RUN)/python -m speechquant.benchmarks.search_comparison --workers 2 > docs/results/search.md

calibration-cost: $(READY)
	$(RUN)/python -m speechquant.benchmarks.calibration_cost > docs/results/calibration-cost.md

# PYTHONWARNINGS: without the build's warnings about what an editable installation is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	PYTHONWARNINGS=ignore $(RUN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[export,quantize,report,zoo,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
