# `make demo` and `make test` need nothing but Python 3.11 or later: the rest is set up here.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready
# A page of docs/results that a command prints; it stays as it was where the command fails.
page = > $(VENV)/page-$(1).md && mv $(VENV)/page-$(1).md docs/results/$(1).md

.PHONY: demo test docs test-slow test-real lint format bad-inputs float-tables stablequant-tables cross-domain \
	search-comparison calibration-cost scale faults bench bench-zoo bench-base bench-large attention-words backend-agreement \
	engine-builds whisper-speed whisper-agreement whisper-tables known-and-new \
	regression-check real-whisper real-whisper-speed gated-tables kdq-tables long-audio serve-load \
	test-tensorrt8 test-pythons release-check first-minute coverage clean

demo: $(READY)
	$(RUN)/speechquant demo --out demo-out

# A process for each core: most tests keep one busy. What takes long to make is made once and shared by all.
# Bytecode is kept, because hundreds of the processes that tests start import the same modules.
# A process that dies is named with its test and ends the run, as does the time limit, in seconds.
TEST_SECONDS ?= 1800
test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(RUN)/python -m pytest --numprocesses auto --dist worksteal --max-worker-restart 0 \
		--run-seconds $(TEST_SECONDS)

# Minutes instead of seconds: the true-size models.
test-slow: $(READY)
	$(RUN)/python -m pytest -m slow --timeout 1800

# SPEECHQUANT_REAL_WHISPER: folders of checkpoints, colons between them. SPEECHQUANT_REAL_SPEECH: a data set, the first
# 32 clips of which calibrate and the last 20 are heard.
test-real: $(READY)
	$(RUN)/python -m pytest -m real --timeout 1800

# The site, in build/site; a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --quiet

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(READY)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bad-inputs: $(READY)
	$(RUN)/python tests/bad_inputs.py $(call page,bad-inputs)

# DATA='--data PATH/an4-train,hold_out=8' adds a set of real voices.
float-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.float_tables $(DATA) $(call page,float)

# Hours on two cores, most of them the exhaustive searches; OPTIONS='--search fast', '--dev-clips 100' or '--widths 8 6'
# make it less. DATA as above adds a set; WORK='--work FOLDER' lets a killed run go on.
stablequant-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.stablequant_tables --workers 2 $(WORK) $(DATA) $(OPTIONS)

# Prints its tables. DATA='--data LibriSpeech,hold_out=8 --data an4,hold_out=8': held-out speakers are tested on, the
# others calibrate. OPTIONS='--only counts' makes one of the two tables, '--work FOLDER' lets a killed run go on.
cross-domain: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.cross_domain $(DATA) $(OPTIONS)

# Half an hour as well.
search-comparison: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.search_comparison --workers 2 --work build/search-comparison \
		$(call page,search)

calibration-cost: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.calibration_cost $(call page,calibration-cost)

# Both want a machine that does nothing else and the extra `cluster`.
scale: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.scale

faults: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.faults --runs 10

attention-words: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.attention_words $(call page,attention-words)

backend-agreement: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.backend_agreement $(call page,backend-agreement)

# The reports of docs/results: both zoo models with their words, hubert-base and its peers, hubert-large, the
# latter two with speed and size alone. An hour on two cores that do nothing else; a killed run goes on.
BENCH := build/bench
SPEECHQUANT := $(RUN)/speechquant
BENCHED_ZOO := $(foreach model,wav2vec2 hubert,$(addprefix $(BENCH)/$(model)-,fp32 w8a8 cpu-engine rtx3090-engine))
BENCHED_BASE := $(addprefix $(BENCH)/hubert-base-,fp32 w8a8 w8a8-attention cpu-engine rtx3090-engine)
BENCHED_LARGE := $(addprefix $(BENCH)/hubert-large-,fp32 w8a8 w8a8-attention cpu-engine)

bench: bench-zoo bench-base bench-large

bench-zoo: $(VENV)/.peers $(BENCHED_ZOO:=/.made)
	$(SPEECHQUANT) bench --force --data zoo:test --limit 400 --peers --calibration zoo:dev \
		--providers cpu,openvino --lengths 1,2,5,10,20,30 --batch 1,4 --repeats 11 \
		--out docs/results/bench-zoo $(BENCHED_ZOO)

bench-base: $(VENV)/.peers $(BENCHED_BASE:=/.made)
	$(SPEECHQUANT) bench --force --data zoo:test --no-wer --peers --calibration zoo:dev \
		--providers cpu,openvino --batch 1 --repeats 9 --out docs/results/bench-base $(BENCHED_BASE)

bench-large: $(VENV)/.peers $(BENCHED_LARGE:=/.made)
	$(SPEECHQUANT) bench --force --data zoo:test --no-wer --peers --only-peers nncf,bf16 --calibration zoo:dev \
		--providers cpu,openvino --lengths 2,10,30 --batch 1 --repeats 9 --out docs/results/bench-large $(BENCHED_LARGE)

# Random weights have no words to search by.
$(BENCH)/hubert-base-% $(BENCH)/hubert-large-%: QUANTIZE := --data zoo:dev --limit 8 --method max
$(BENCH)/%: QUANTIZE ?= --data zoo:dev --workers 2
$(BENCH)/hubert-base-fp32/.made: MODEL := random:hubert-base
$(BENCH)/hubert-large-fp32/.made: MODEL := random:hubert-large
$(BENCH)/wav2vec2-fp32/.made: MODEL := zoo:wav2vec2
$(BENCH)/hubert-fp32/.made: MODEL := zoo:hubert

.PRECIOUS: $(BENCH)/%/.made

$(BENCH)/%-fp32/.made: | $(READY)
	$(SPEECHQUANT) export --force $(MODEL) $(@D)
	touch $@

$(BENCH)/%-w8a8/.made: $(BENCH)/%-fp32/.made
	$(SPEECHQUANT) quantize --force $(<D) $(@D) $(QUANTIZE)
	touch $@

$(BENCH)/%-w8a8-attention/.made: $(BENCH)/%-fp32/.made
	$(SPEECHQUANT) quantize --force $(<D) $(@D) $(QUANTIZE) --quantize-attention
	touch $@

$(BENCH)/%-cpu-engine/.made: $(BENCH)/%-w8a8/.made
	$(SPEECHQUANT) build --force $(<D) $(@D) --backend onnxruntime
	touch $@

$(BENCH)/%-rtx3090-engine/.made: $(BENCH)/%-w8a8/.made
	$(SPEECHQUANT) build --force $(<D) $(@D) --backend tensorrt-rtx --target rtx3090
	touch $@

$(VENV)/.peers: $(READY)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	touch $@

# Ten minutes on a machine that does nothing else.
regression-check: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.regression_check $(call page,regression-check)

whisper-speed: $(VENV)/.peers
	$(RUN)/python -m speechquant.benchmarks.papers.whisper_speed $(call page,whisper-speed)

whisper-agreement: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.whisper_agreement $(call page,whisper-agreement)

# Renders zoo:train first, where it is not there.
known-and-new: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.known_and_new $(call page,known-and-new)

# WORK as above.
whisper-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.whisper_tables --workers 2 $(WORK)

# Hours. CHECKPOINTS are folders or hub ids; TEST, DEV and CALIBRATION manifests or folders of LibriSpeech:
# make real-whisper CHECKPOINTS=openai/whisper-large-v3 TEST=LibriSpeech/test-clean DEV=LibriSpeech/dev-clean \
#     CALIBRATION=LibriSpeech/train-clean-100
# OPTIONS='--limit 4' for a try. What was measured is in build/real-whisper, so that a killed run goes on.
REAL_WHISPER = $(RUN)/python -m speechquant.benchmarks.papers.real_whisper $(CHECKPOINTS) \
	--test $(TEST) --dev $(DEV) --calibration $(CALIBRATION) $(OPTIONS)

real-whisper: $(VENV)/.peers
	$(REAL_WHISPER)

# With the same sets, on a machine that does nothing else; writes a page of its own.
real-whisper-speed: $(VENV)/.peers
	$(REAL_WHISPER) --speed

# Hours. Students that speechquant.students.distil has trained, a pair of each size, and other checkpoints:
# make gated-tables PAIRS='--pair runs/6-none/best runs/6-token/best' CHECKPOINTS=openai/whisper-base CALIBRATION=DEV \
#     TESTS='--test read=LibriSpeech/test-clean --test telephone=an4/manifest.jsonl,as=telephone'
# The page and what was measured are in build/gated-tables, so that a killed run goes on.
gated-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.gated_tables $(CHECKPOINTS) $(PAIRS) $(TESTS) \
		--calibration $(CALIBRATION) $(OPTIONS)

# TEACHER is a checkpoint, RUNS are folders that speechquant.students.kdq has trained; page and measurements are in build/kdq.
# make kdq-tables TEACHER=openai/whisper-base RUNS='runs/uniform runs/apot' TESTS='--test read=LibriSpeech/test-clean'
kdq-tables: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.kdq_tables $(TEACHER) $(RUNS) $(TESTS) --work build/kdq --out build/kdq $(OPTIONS)

# CHECKPOINTS are folders or hub ids, of Whisper or CTC models; TEST is a manifest. What was measured is in
# build/long-audio, and only rows that are missing there run. OPTIONS='--work FOLDER' keeps them elsewhere. zoo:hubert
# hears ten minutes of zoo:test as well.
# make long-audio CHECKPOINTS=openai/whisper-tiny.en TEST=LibriSpeech/test-clean
long-audio: $(VENV)/.peers
	$(RUN)/python -m speechquant.benchmarks.papers.long_audio $(CHECKPOINTS) --data $(TEST) $(OPTIONS) \
		$(call page,long-audio)

# MODEL is a bundle or an engine, DATA a data set. OPTIONS='--clients 64 --minutes 10' for more than 8 and 2,
# '--batches 8 --minutes 0.5 --hostile 0' for a try.
# make serve-load MODEL=whisper-w8a8 DATA=LibriSpeech/test-clean
serve-load: $(READY)
	$(RUN)/python -m speechquant.benchmarks.load $(MODEL) --data $(DATA) $(OPTIONS) $(call page,serve-load)

engine-builds: $(READY)
	$(RUN)/python -m speechquant.benchmarks.papers.engine_builds $(call page,engines-sm86)

# The calibrator classes and the session on the real TensorRT 8.5, which needs Python 3.10
# (PYTHON310=... where it is not found) and 1.7 GB of downloads, but no GPU. speechquant goes in without
# its dependencies, whose versions in constraints.txt are for a later Python: these need NumPy alone.
TENSORRT8 := build/tensorrt8
PYTHON310 ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || \
	PYENV_VERSION="$$(pyenv versions --bare 2>/dev/null | grep '^3\.10\.' | tail -n 1)" \
	pyenv which python3.10 2>/dev/null)

test-tensorrt8:
	@if [ -z "$(PYTHON310)" ]; then \
		echo "test-tensorrt8: skipped, there is no Python 3.10 here; name one with PYTHON310=..."; \
	else \
		$(MAKE) --no-print-directory $(TENSORRT8)/.ready PYTHON310="$(PYTHON310)" && \
		$(TENSORRT8)/bin/python -m pytest --confcutdir=tests/tensorrt8 tests/tensorrt8 \
			tests/calibrators/test_tensorrt.py tests/engines/tensorrt/test_session.py; \
	fi

# The import fails where a library of CUDA is missing, which the tests would take for a reason to skip.
$(TENSORRT8)/.ready: pyproject.toml constraints-tensorrt8.txt
	$(PYTHON310) -m venv $(TENSORRT8)
	$(TENSORRT8)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement constraints-tensorrt8.txt
	PYTHONWARNINGS=ignore $(TENSORRT8)/bin/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --editable .
	$(TENSORRT8)/bin/python -c 'import tensorrt'
	touch $@

# The wheel without extras, and what of the tests needs none, on each of these that the machine has.
PYTHONS := 3.10 3.11 3.12 3.13

test-pythons: $(READY)
	$(RUN)/python tests/pythons.py $(PYTHONS)

# PYTHONWARNINGS: without the build's warnings about what an editable installation is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	PYTHONWARNINGS=ignore $(RUN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[export,quantize,openvino,tensorrt-rtx,report,zoo,data,docs,movies,serve,vad,dev]'
	touch $@

# What a release must pass: twine, and the wheel alone in clean environments.
release-check: $(READY)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt build twine
	$(RUN)/python tests/release.py $(PYTHONS)

# A recording for docs/quickstart.md. FOLDER has a Whisper in `checkpoint`, `dev.jsonl` with its audio, and `talk.wav`.
# termtosvg needs pkg_resources, which later setuptools lack.
RECORDER := build/recorder
first-minute: $(READY)
	$(PYTHON) -m venv $(RECORDER)
	$(RECORDER)/bin/python -m pip install --quiet 'asciinema<3' 'termtosvg==1.1.0' 'setuptools<81'
	PATH="$(CURDIR)/$(RECORDER)/bin:$$PATH" $(PYTHON) tests/first_minute.py $(FOLDER)

# Left out: what runs on a GPU alone, and the trainings.
coverage: $(READY)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt pytest-cov
	$(RUN)/python -m pytest --numprocesses auto --dist worksteal --cov=speechquant --cov-report=term:skip-covered

clean:
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
