"""What ends one process ends all of them within seconds, with its message in the last lines."""

import json
import signal
import time
from pathlib import Path

import ends_badly
import pytest
import recipes_in_turn
from launching import LAUNCH, RECIPES, Recipe, run_warm

SLOW = pytest.mark.slow
MEMORY = "OutOfMemoryError: tried to allocate 20 GiB"
WORD = "error: The connection to another process was lost"


@pytest.mark.parametrize(
    ("how", "meanwhile", "message", "told"),
    [
        ("killed", "waits", WORD, "exitcode  : -9"),
        ("a bad row", "waits", "error: row 7 of reviews.jsonl holds no text", "exitcode  : 2"),
        pytest.param("killed", "is busy", "Signal 9 (SIGKILL)", "exitcode  : -9", marks=SLOW),
        pytest.param("out of memory", "is busy", MEMORY, "Traceback", marks=SLOW),
    ],
)
def test_the_end_of_one_is_the_end_of_all(how, meanwhile, message, told, tmp_path):
    script = Path(ends_badly.__file__)
    flags = ["--how", how, "--meanwhile", meanwhile, "--output_dir", tmp_path]
    done = run_warm(*LAUNCH, script, *flags)
    took = time.time() - float((tmp_path / "when").read_text())
    assert done.returncode != 0
    assert took < 10
    assert told in done.stderr
    assert message in "\n".join(done.stderr.splitlines()[-12:])
    assert "gloo" not in done.stderr  # what the end looks like from the other process


@SLOW  # that one process which is told ends all, test_several_processes.py holds
def test_the_launcher_told_to_stop_leaves_a_checkpoint_to_go_on_from(tmp_path):
    recipes_in_turn.make_models(tmp_path / "models")
    recipe, flags = recipes_in_turn.RUNS["grpo"]
    flags = flags.format(models=tmp_path / "models").replace("--max_steps 2", "--max_steps 9999")
    script = RECIPES / f"{recipe}.py"
    flags = flags.replace("--save_steps 1", "--save_steps 9999") + " --disable_tqdm true"
    launcher = Recipe(*LAUNCH, script, *flags.split(), "--output_dir", tmp_path / "run")
    rows = tmp_path / "run" / "all_stats.jsonl"
    launcher.wait_until(lambda: rows.is_file() and rows.stat().st_size)
    launcher.send_signal(signal.SIGTERM)
    done = launcher.finish()
    told = done.stderr
    assert done.returncode != 0
    assert told.count("SIGTERM: finishing this step, then saving.") == 1
    assert told.count("--resume_from_checkpoint true") == 1
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    steps = len(rows.read_text().splitlines())
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == steps
    assert len(list(checkpoint.glob("rng_state_*.pth"))) == 2
