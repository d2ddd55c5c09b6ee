# Every target sets up .venv by itself; nothing has to be installed by hand before.
# PYTHON chooses the interpreter (3.11 or 3.12): make setup PYTHON=python3.12

PYTHON ?= python3
OUT ?= demo
DATA ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.mu2-ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test test-fast test-containers check manifests manifests-lint images clean

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' mu2llm/__init__.py)
IMAGES := base train triton
# An image's base is replaced by <image>_BASE, pip's settings are given with PIP_CONF, a file that no layer keeps:
#   make images IMAGES=base base_BASE=our/python:3.12 PIP_CONF=/etc/pip.conf
PIP_CONF ?=
# The client, and more options for `docker build`: make images DOCKER=/usr/bin/docker BUILD_OPTIONS=--network=host
DOCKER ?= docker
BUILD_OPTIONS ?=
comma := ,

setup: $(READY)

# deepspeed builds from source and needs torch to be there, so torch goes first and deepspeed's build is not
# isolated. DS_BUILD_OPS=0: no C++ extension is compiled, so no compiler is needed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "mu2: error: Python %d.%d found, 3.11 or 3.12 needed: make setup PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "mu2: error: this Python cannot make a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt 'setuptools>=77' wheel
	$(PIP) install -q -c constraints.txt torch==2.13.0
	@$(BIN)/python -c 'import torch; print(torch.__version__)' > $(VENV)/.torch-version
	DS_BUILD_OPS=0 $(PIP) install -q -c constraints.txt --no-build-isolation deepspeed
	DS_BUILD_OPS=0 $(PIP) install -q -c constraints.txt -e '.[train,platform,client,server,dev]'
	@test "$$($(BIN)/python -c 'import torch; print(torch.__version__)')" = "$$(cat $(VENV)/.torch-version)" \
		|| { echo "mu2: error: a package replaced torch $$(cat $(VENV)/.torch-version): see pip's output above" >&2; exit 2; }
	$(BIN)/python -m mu2llm.serving.triton_binary
	@touch $@

# The main job: DATA= a folder of CTs with reports.csv (default: synthetic CTs), OUT= where results go.
demo: setup
	$(BIN)/mu2 demo --out '$(OUT)' $(if $(DATA),--data '$(DATA)')

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m 'not slow and not long' -n auto --dist loadfile

# Builds the images on Debian bases, and runs training on two nodes and the pipeline in them. Needs root and
# debootstrap, and a Docker engine or docker.io; the images stay in build/containers.
test-containers: setup
	MU2_TEST_CONTAINERS=1 $(BIN)/python -m pytest tests/containers -v -x --durations=10

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_docs.py

# Renders the overlays to build/manifests and checks what came out. Needs kustomize, or a kubectl that has it.
manifests: setup
	$(BIN)/python -m tests.manifests.render build/manifests
	$(BIN)/python -m pytest -q tests/manifests

# A policy linter, in an environment of its own: its pins are not the project's.
manifests-lint: manifests
	@test -x build/checkov/bin/checkov || { $(PYTHON) -m venv build/checkov && build/checkov/bin/pip install -q checkov==3.3.30; }
	build/checkov/bin/checkov --config-file manifests/.checkov.yaml -d build/manifests

# wheels/ may hold the CPU build of torch, or be empty. The mounts of the Dockerfiles need BuildKit.
images:
	@mkdir -p wheels
	@for image in $(IMAGES); do \
		case $$image in base) base='$(base_BASE)';; train) base='$(train_BASE)';; triton) base='$(triton_BASE)';; esac; \
		DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_OPTIONS) --file images/$$image/Dockerfile --tag mu2llm/$$image:$(VERSION) \
			$${base:+--build-arg BASE_IMAGE=$$base} $(if $(PIP_CONF),--secret 'id=pip$(comma)src=$(PIP_CONF)') \
			--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) . || exit 1; \
	done

# Removes what was built, not what was measured: demo/ stays.
clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
