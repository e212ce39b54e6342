# Every target sets up its own environment in .venv; only Python 3.11 to 3.13 has to be installed.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/complete
# Two workers, since few tests keep two cores busy. One at a time: make test ARGS=-n0
PYTEST := $(PYTHON) -m pytest -n 2 --dist worksteal --durations=20
PIP := -m pip --disable-pip-version-check install --progress-bar off
# Prints the packages that pip reaches, in lines of 80 columns. A pipe has the status of its last command, so pip has failed if
# the word "complete" does not come; $(PIP_ERRORS) says why.
PIP_ERRORS := $(VENV)/pip-errors
TELL := { line=; while read -r word name _; do case "$$word" in \
	Collecting | Processing) name=$${name\#\#*/}; name=$${name%%[<=>!]*}; name=$${name%%-[0-9]*}; \
		if [ $$(($${\#line} + $${\#name})) -gt 77 ]; then echo " $$line"; line=; fi; line="$$line $$name";; \
	Installing) echo " $$line"; echo "Unpacking them";; \
	complete) rm $(PIP_ERRORS); exit 0;; \
	esac; done; cat $(PIP_ERRORS) >&2; rm $(PIP_ERRORS); exit 1; }
# If pip knows no build for CPUs only, as on Linux, it takes the one for GPUs: 3 GB.
TORCH := torch==2.13.0
TORCH_VENV := .venv-torch
export PYTHONUNBUFFERED := 1

.PHONY: degradation atlas test test-slow test-browser test-torch bench fuzz soak lint setup setup-torch

# The main job: {plain, resnet} × {20, 56 layers} on the embedded digits. Any depth: make degradation ARGS="--config.sweep.depths='(20,56,110)' --workdir=runs/deeper"
degradation: setup
	$(PYTHON) -m experiments.degradation $(ARGS)

# Which repairs make plain networks of 56 layers trainable, with the kept learning rates.
atlas: setup
	$(PYTHON) -m experiments.repairs --workers=2 $(ARGS)

test: setup
	$(PYTEST) $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

# The report in headless Chromium, if Debian's packages chromium and chromium-driver are installed; part of test-slow.
test-browser: setup
	$(PYTEST) -m browser $(ARGS)

# PyTorch's files, in an environment of its own, since everything else must work without PyTorch.
test-torch: setup-torch
	$(TORCH_VENV)/bin/python -m pytest -m torch $(ARGS)

# Milliseconds compared with plain Flax and PyTorch, then JPEGs per second compared with Pillow and tf.data: half an hour or more.
# Only some networks, and no JPEGs: make bench ARGS="--networks=resnet20"
bench: setup
	$(PYTHON) -m experiments.benchmarks.throughput $(ARGS)
	$(if $(ARGS),,$(PYTHON) -m experiments.benchmarks.stream_throughput)

# Ten minutes of damaged files. Another seed: make fuzz ARGS="600 7".
fuzz: setup
	$(PYTHON) -m tests.fuzz $(ARGS)

# Runs killed with SIGKILL at 30 random moments must end with the same bits (another number and seed: make soak ARGS="100 7"),
# and long work must take no more memory than short work.
soak: setup
	$(PYTHON) -m tests.killed soak $(ARGS)
	$(PYTHON) -m tests.test_memory

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@for python in python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
			echo "Setting up $(VENV) with $$($$python --version)"; \
			$$python -m venv --clear $(VENV) && \
			echo "Downloading the $$(grep -c == requirements.txt) packages of requirements.txt, which takes a minute or more:" && \
			{ $(PYTHON) $(PIP) -r requirements.txt 2>$(PIP_ERRORS) && echo complete; } | $(TELL) && \
			$(PYTHON) $(PIP) -qq --no-build-isolation --no-deps --editable . && \
			touch $@ && exit 0; \
			exit 1; \
		fi; \
	done; \
	echo "plain56 needs Python 3.11, 3.12 or 3.13 with venv; found: $$(python3 --version 2>&1)" >&2; exit 1

setup-torch: $(TORCH_VENV)/complete

# On top of the other environment's packages.
$(TORCH_VENV)/complete: $(STAMP)
	@echo "Setting up $(TORCH_VENV) with $(TORCH), which takes a minute or more"
	@$(PYTHON) -m venv --clear $(TORCH_VENV)
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(PYTHON) -c "$$packages")')" \
		> "$$($(TORCH_VENV)/bin/python -c "$$packages")/plain56.pth"
	@{ $(TORCH_VENV)/bin/python $(PIP) $(TORCH) 2>$(PIP_ERRORS) && echo complete; } | $(TELL)
	@$(TORCH_VENV)/bin/python -c 'import plain56, torch'
	@touch $@
