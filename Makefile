# Two commands: `make quickstart` and `make test`. Each makes .venv, installs, finds the data, and goes.
# Stamp files in .venv remember what is done, so a repeated run starts at once.

VENV := .venv
BIN  := $(VENV)/bin
NB   ?= $(basename $(notdir $(wildcard nbs/*.ipynb)))
export JUPYTER_PREFER_ENV_PATH := 1
export HF_DATASETS_DISABLE_PROGRESS_BARS := 1
export PYTHONWARNINGS := ignore:IProgress not found

.PHONY: quickstart test sync smoke pytest equations bench nbs readme site lab clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.run $(VENV)/.data  ## train a few minutes, sample, score, draw
	$(BIN)/miniai_quickstart

test: sync smoke pytest                 ## all that there is to test; ends with pytest's line

sync: $(VENV)/.dev                      ## miniai/ is what the notebooks export
	@echo "== export in sync"
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	mkdir "$$new/miniai"; cp -r nbs pyproject.toml "$$new"; cp miniai/__init__.py miniai/__main__.py miniai/py.typed "$$new/miniai"; \
	here=$$PWD; (cd "$$new" && "$$here/$(BIN)/nbdev-export") && \
	diff -r -x __pycache__ -x data -x weights "$$new/miniai" miniai || \
	{ echo 'miniai/ differs from what the notebooks export: edit the notebooks, run nbdev-export, commit both'; exit 1; }

smoke: sync $(VENV)/.data               ## every notebook, top to bottom, in seconds each; the files stay as they are
	@echo "== notebooks at smoke scale"
	@printf '%s\n' $(NB) | MINIAI_SCALE=smoke OMP_NUM_THREADS=1 xargs -P 2 -I '{}' sh -c '\
	out=$$($(BIN)/jupyter execute --timeout=600 "nbs/{}.ipynb" 2>&1) && echo "{} ran" || { echo "$$out"; echo "{} FAILED"; exit 1; }'

pytest: smoke $(VENV)/.site $(VENV)/.browser
	$(BIN)/pytest -q -n 2 --dist worksteal tests

nbs: $(VENV)/.dev $(VENV)/.data         ## run notebooks at MINIAI_SCALE and keep their outputs: make nbs NB="15_DDPM 18_fid"
	@if [ "$$MINIAI_SCALE" = smoke ]; then echo 'outputs of a smoke run are not kept: set MINIAI_SCALE to cpu or gpu, or leave it unset'; exit 1; fi
	for nb in $(NB); do $(BIN)/jupyter execute --inplace --timeout=-1 "nbs/$$nb.ipynb" && $(BIN)/nbdev-clean --fname "nbs/$$nb.ipynb" || exit 1; done

readme: $(VENV)/.dev                    ## README.md from nbs/index.ipynb, its tables read anew from results/
	$(MAKE) nbs NB=index
	$(BIN)/python nbs/readme.py

equations: $(VENV)/.dev                 ## typeset nbs/equations.yml to nbs/images/ (needs node and npm)
	$(BIN)/python nbs/equations.py

bench: $(VENV)/.dev $(VENV)/.data       ## what learner, loader, trackers, FID, sampling loop and U-Net cost; appends to results/bench.jsonl
	for b in learner tracking fid sampling unet dist; do $(BIN)/python bench/$$b.py || exit 1; done

# the page that draws (site/draw) needs torch, the others do not
site: $(VENV)/.site $(if $(wildcard site/draw/build.py),$(VENV)/.run)  ## the notebooks, as they are committed, as pages in _site/: open _site/index.html, or publish the folder
	$(BIN)/python site/build.py

lab: $(VENV)/.lab $(VENV)/.data         ## the notebooks, in JupyterLab
	$(BIN)/jupyter lab nbs

clean:                                  ## all that these commands made, .venv included
	rm -rf $(VENV) _site site/node_modules build dist *.egg-info _proc .pytest_cache .hypothesis samples.png strip.png
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# --- the environment

PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# the first Python that is new enough; as root on Debian, its venv module is installed where it is missing
$(BIN)/python:
	@for py in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	  $$py -c 'import sys; sys.exit(sys.version_info < (3,10))' 2>/dev/null && break; py=; done; \
	[ -n "$$py" ] || { echo 'no Python ≥ 3.10 found: install one, or say `make … PYTHON=/path/to/python3`'; exit 1; }; \
	echo "making $(VENV) with $$($$py -V)"; \
	if ! $$py -c 'import ensurepip, venv' 2>/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'this Python cannot make environments yet: installing python3-venv'; \
	  apt-get install -qq -y python3-venv >/dev/null || { apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null; }; fi; \
	$$py -m venv $(VENV) || { rm -rf $(VENV); echo 'this Python cannot make environments: on Debian, install python3-venv'; exit 1; }

# torch alone and first: torchvision then takes the version that is there
META := constraints.txt settings.ini setup.py pyproject.toml
$(VENV)/.run: $(META) | $(BIN)/python
	@echo "installing miniai and what it needs into $(VENV) (once)"
	$(PIP) torch
	$(PIP) -e .
	@touch $@

# k-diffusion alone: tests/test_karras.py reads one file of it, which needs nothing that is not here; the rest would bring wandb, clip, kornia and more
$(VENV)/.dev: $(META) | $(BIN)/python
	@echo "installing miniai, what it needs and what the tests need into $(VENV) (once)"
	$(PIP) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps k-diffusion
	@touch $(VENV)/.run $@

$(VENV)/.lab: $(VENV)/.dev
	$(PIP) -e '.[dev,lab]'
	@touch $@

# what the site takes from PyPI and npm; no torch
$(VENV)/.site: $(META) site/package-lock.json | $(BIN)/python
	@echo 'installing what the site needs: four Python packages, KaTeX and three fonts (once)'
	$(PIP) $$(sed -n 's/^site_requirements = //p' settings.ini)
	@command -v npm >/dev/null || { echo 'the site needs node and npm: on Debian, apt-get install npm'; exit 1; }
	npm ci --silent --no-audit --no-fund --prefix site
	@touch $@

# tried once: without it, tests/test_site.py says so and goes on
$(VENV)/.browser: | $(BIN)/python
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'installing the browser that tests the site: the Debian package chromium'; \
	  apt-get install -qq -y chromium >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  echo 'that did not work: the site is built, not tested'; fi
	@touch $@

# tried once: without it, miniai goes on with what it finds
DEBIAN_DATA := /usr/share/datasets/fashion-mnist
EMOJI := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
$(VENV)/.data: | $(BIN)/python
	@if [ ! -d $(DEBIAN_DATA) ] && [ -z "$$MINIAI_DATA" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'installing Fashion-MNIST: the Debian package dataset-fashion-mnist (30 MB)'; \
	  apt-get install -qq -y dataset-fashion-mnist >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -qq -y dataset-fashion-mnist >/dev/null; } || \
	  echo 'that did not work: going on with what else there is'; fi
	@if [ ! -f $(EMOJI) ] && [ -z "$$MINIAI_DATA" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'installing coloured pictures: the Debian package fonts-noto-color-emoji (10 MB)'; \
	  apt-get install -qq -y fonts-noto-color-emoji >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -qq -y fonts-noto-color-emoji >/dev/null; } || \
	  echo 'that did not work: notebook 21 goes on with drawn pictures'; fi
	@touch $@
