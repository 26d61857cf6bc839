"""What ends one process ends all of them within seconds, with its message in the last lines."""

import subprocess
import time
from pathlib import Path

import ends_badly
import pytest
from test_several_processes import ENVIRONMENT, LAUNCH

WORD = "error: The connection to another process was lost"


@pytest.mark.parametrize(
    ("how", "meanwhile", "message", "told"),
    [
        ("killed", "waits", WORD, "exitcode  : -9"),
        ("killed", "is busy", "Signal 9 (SIGKILL)", "exitcode  : -9"),
        ("a bad row", "waits", "error: row 7 of reviews.jsonl holds no text", "exitcode  : 2"),
        ("out of memory", "is busy", "OutOfMemoryError: tried to allocate 20 GiB", "Traceback"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(how, meanwhile, message, told, tmp_path):
    script = Path(ends_badly.__file__)
    flags = ["--how", how, "--meanwhile", meanwhile, "--output_dir", tmp_path]
    done = subprocess.run(
        [*LAUNCH, script, *flags],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    took = time.time() - float((tmp_path / "when").read_text())
    assert done.returncode != 0
    assert took < 10
    assert told in done.stderr
    assert message in "\n".join(done.stderr.splitlines()[-12:])
    assert "gloo" not in done.stderr  # what the end looks like from the other process
