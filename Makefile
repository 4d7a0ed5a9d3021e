# make quickstart   environment, then the main job on a world that we render ourselves: clips to a page with the results
# make quickstart DATA=FOLDER   the same job on a folder of your own videos
# make control      the sync head on random extractors, beside the run that quickstart made
# make test         environment, then the tests
# make test-slow    the tests that take minutes
# make lint, make clean

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
DATA ?=
RUN ?= runs/$(if $(DATA),$(notdir $(DATA:/=)),quickstart)
# More flags for each training, such as STAGE1=--config.train.steps=2000
STAGE1 ?=
STAGE2 ?=

PY = $(VENV)/bin/python
CLIPS = $(or $(DATA),$(RUN)/clips)
RECORDS = $(RUN)/records
CONFIG = configs/quickstart.py
# The held-out clip of the last step. Of your own videos it is the first; CLIP=FILE chooses another.
CLIP ?= $(if $(DATA),$(firstword $(foreach e,mp4 mkv webm mov avi MP4 MOV,$(wildcard $(DATA)/*.$(e) $(DATA)/test/*.$(e)))),$(RUN)/clips/test/dense_00000.mp4)

# XLA frees and takes large buffers at every step; keeping them, in huge pages, makes CPU training 1.3 to 2 times faster.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864
export JAX_COMPILATION_CACHE_DIR ?=

.PHONY: quickstart control test test-slow lint clean env

$(VENV)/.ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . 2>/dev/null \
	  || $(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

env: $(VENV)/.ready

# Every step keeps what it finds done, so after ctrl-C the same command goes on where it was.
quickstart: $(VENV)/.ready
ifeq ($(DATA),)
	$(PY) -m data_prep.procedural $(RUN)/clips --seed $(SEED)
endif
	$(PY) -m data_prep.folder $(CLIPS) $(RECORDS) --name clips --short-side 74
	$(PY) -m synchformer_jax.train --config $(CONFIG):segment_avclip --config.seed=$(SEED) \
	  --config.data.train=$(RECORDS) --config.data.valid=$(RECORDS) --workdir $(RUN)/stage1 $(STAGE1)
	$(PY) -m synchformer_jax.train.cache --workdir $(RUN)/stage1 --data $(RECORDS) --splits train,valid --out $(RUN)/features
	$(PY) -m synchformer_jax.train --config $(CONFIG):sync --config.seed=$(SEED) --config.init.avclip=$(RUN)/stage1 \
	  --config.data.train=$(RECORDS) --config.data.valid=$(RECORDS) --config.data.visual_features=$(RUN)/features \
	  --workdir $(RUN)/sync $(STAGE2)
	$(PY) -m synchformer_jax.eval --workdir $(RUN)/sync --data $(RECORDS) --split test --by level --out $(RUN)/eval.json
	$(VENV)/bin/synchformer predict $(CLIP) --checkpoint $(RUN)/sync --offset-sec 0.8 --out $(RUN)/prediction.json
	$(PY) -m synchformer_jax.eval.report --run $(RUN)

control: $(VENV)/.ready
	$(PY) -m synchformer_jax.train.cache --workdir $(RUN)/stage1 --random_extractors --data $(RECORDS) \
	  --splits train,valid --out $(RUN)/control/features
	$(PY) -m synchformer_jax.train --config $(CONFIG):sync --config.seed=$(SEED) --config.init.random_extractors=True \
	  --config.data.train=$(RECORDS) --config.data.valid=$(RECORDS) --config.data.visual_features=$(RUN)/control/features \
	  --workdir $(RUN)/control/sync $(STAGE2)
	$(PY) -m synchformer_jax.eval --workdir $(RUN)/control/sync --data $(RECORDS) --split test --by level --out $(RUN)/control/eval.json
	$(PY) -m synchformer_jax.eval.report --run $(RUN)

test: $(VENV)/.ready
	$(PY) -m pytest -n 2 --dist loadfile -q

test-slow: $(VENV)/.ready
	$(PY) -m pytest -q -m slow

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info
