# Each target does its own set-up in .venv, once; `make` alone lists them.
# Written for GNU make 3.81 and newer. Paths are relative, so that the folder's name may hold spaces.

PY := .venv/bin/python
STAMP := .venv/.installed
# Two processes with one thread each: with two each they were several times slower on two cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab run test browser notebooks models bench data lint doctor clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile
	@echo "The first call of most of them sets up .venv, which takes some minutes."

lab: $(STAMP) ## open the course in JupyterLab (LAB_ARGS="--no-browser" for a server)
	$(PY) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

run: $(STAMP) ## execute one chapter without a browser: make run CHAPTER=00
	$(PY) -m course.classroom.execute run $(or $(CHAPTER),00)

test: lint ## run all tests but the browser's: code style, units, parity, every notebook
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not browser" \
	  --nbval --nbval-current-env --nbval-cell-timeout=900 tests/test_colab.py notebooks tests

browser: $(STAMP) ## run the tests that drive a real browser (installs Chromium where it can)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium from Debian (about 100 MB, a minute or two)."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
	  echo "The browser tests need Chromium: install the package chromium (Debian: sudo apt-get install chromium)."; \
	  exit 1; \
	fi
	$(PYTEST) -m browser tests/browser

notebooks: $(STAMP) ## execute the notebooks again and keep the outputs (CHAPTER=08 for one chapter)
	$(PY) -m course.classroom.execute notebooks $(CHAPTER)

models: $(STAMP) ## make the bundled base models again, from nothing; goes on where it was stopped (hours)
	$(PY) -m course.lab.pretrain

bench: $(STAMP) ## measure the speed of training and evaluation
	$(PY) tests/bench.py

data: $(STAMP) ## write the shop's data and its checksums again, bit for bit the same
	$(PY) -m course.lab.shop

lint: $(STAMP) ## check the style of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

doctor: $(STAMP) ## say whether the course will run on this machine
	$(PY) -m course doctor

clean: ## remove the environment and all caches; build/ stays, it may hold hours of training
	rm -rf .venv .cache dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an installation that was cut short is taken up again.
# torch comes first and by its exact version: a range would let pip look for a newer one, with its own gigabytes.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(FIND_PYTHON) \
	$(PY) -m pip --version >/dev/null 2>&1 || { echo "Setting up .venv with $$python."; "$$python" -m venv --clear .venv; }
	@echo "Installing torch. With a fast network this takes a minute or two; where it brings GPU libraries, they are about 3 GB."
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "Installing the other packages, quietly: one to three minutes."
	@$(PY) -m pip install --quiet --progress-bar off --log .venv/pip.log --disable-pip-version-check -c constraints.txt -e '.[lab,test]' || \
	  { echo "The installation failed; the details are at the end of .venv/pip.log."; exit 1; }
	@touch $@
	@echo "The environment is ready."

# Sets $$python to the first Python that is new enough; PYTHON=... names the only one to try.
define FIND_PYTHON
python=; found=; \
for name in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python); do \
  version=$$("$$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
  found="$$found $$name is $$version."; \
  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$$name; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "The course needs Python 3.11 or newer (3.11 to 3.13 are tested). Found:$${found:- none.}"; \
  echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; \
  exit 1; \
fi;
endef
