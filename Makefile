PYTHON ?= python3
BIN := .venv/bin
DEMO := --input runs/demo/input
# Test files beside each other, each process with one thread.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu test-kaggle-image lint

help:  ## Lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo
	@echo "  Settings: PYTHON=python3.12 (for a new .venv)"

demo: .venv/installed  ## Draws cars, trains two folds, writes and scores a submission (4 to 11 minutes)
	$(BIN)/python src/draw.py demo --output runs/demo/input
	$(BIN)/python src/create_folds.py $(DEMO) --num-folds 2 --output runs/demo/folds.csv --overwrite
	$(BIN)/python src/train.py demo --fold all $(DEMO) --folds runs/demo/folds.csv --overwrite
	$(BIN)/python src/evaluate.py demo --tta hflip $(DEMO) --folds runs/demo/folds.csv
	$(BIN)/python src/report.py demo $(DEMO)
	$(BIN)/python src/make_submission.py demo --tta hflip $(DEMO) --output runs/demo/submission.csv.gz --overwrite
	$(BIN)/python src/submission.py check runs/demo/submission.csv.gz $(DEMO)
	$(BIN)/python src/submission.py score runs/demo/submission.csv.gz --truth runs/demo/input/test_masks
	$(BIN)/python src/draw.py overlays runs/demo/submission.csv.gz $(DEMO) --output runs/demo/overlays.jpg
	@echo
	@echo "Where everything lies:"
	@echo "  runs/demo/input/           drawn photos, masks, and the test cars' truth"
	@echo "  runs/demo/fold*/           checkpoint, log and state of each fold"
	@echo "  runs/demo/oof.json         out-of-fold Dice and threshold; oof.csv has it by photo"
	@echo "  runs/demo/report.html      what the networks do well and badly, as a page: open it in a browser"
	@echo "  runs/demo/submission.csv.gz  the submission"
	@echo "  runs/demo/overlays.jpg     predicted outlines on the test photos: look at it"

test: .venv/installed-dev  ## Runs the test suite
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-gpu: .venv/installed-dev  ## Runs the tests that need a GPU, which the suite hides
	$(BIN)/python -m pytest tests/gpu

test-kaggle-image: .venv-kaggle/installed  ## Runs the test suite with the library versions of Kaggle's image
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-kaggle/bin/python $(PYTEST)

lint: .venv/installed-dev  ## Checks style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11: PYTHON=python3.12 make ... picks another"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "no venv module: on Debian, apt install python3-venv"; exit 1; }

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt kernels/requirements.txt benchmarks/requirements.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -c "import pymatting"  # compiles for a minute when it is first imported
	@touch $@

.venv-kaggle/installed: kernels/kaggle-image.txt requirements-dev.txt requirements.txt kernels/requirements.txt benchmarks/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "Kaggle's versions want Python 3.11 or 3.12: PYTHON=python3.12 make ... picks another"; exit 1; }
	@$(PYTHON) -m venv .venv-kaggle
	.venv-kaggle/bin/python -m pip install --quiet --disable-pip-version-check torch==2.10.0 torchvision==0.25.0 || \
		echo "torch 2.10 cannot be had for this Python: the newest instead"
	.venv-kaggle/bin/python -m pip install --quiet --disable-pip-version-check -c $< -r requirements-dev.txt
	@touch $@
