"""What one process of test_sharded_groups.py runs: GRPO, and saves the model.

accelerate launch --num_processes 2 tests/models/group_in_parts.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import cpu_as_gpu  # noqa: F401
from tiny_grpo import build, without_times


def main(folder):
    trainer = build(output_dir=str(folder), max_steps=3, save_steps=2, beta=0.1, learning_rate=1e-3)
    trainer.train()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        rows = [{"way": str(trainer.accelerator.distributed_type)}, *trainer.all_stats]
        (folder / "rows.json").write_text(json.dumps(without_times(rows)))
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # torch 2.13 can wait for itself for ever when it takes gloo down


if __name__ == "__main__":
    main(Path(sys.argv[1]))
