"""From pairs to a pretrained model, and from its outputs to a reward model: two stages of a run.

Each has a folder in the run's, is trained once for its settings and found there again, goes on from
its checkpoint where it was ended early, and is never taken for one of other settings.
"""

import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_recipes.describe import duration
from trl_recipes.distributed import broadcast_from_main, print_main
from trl_recipes.errors import RecipeError
from trl_recipes.models.hub import resolve
from trl_recipes.ppo import PPOConfig
from trl_recipes.report import write_report
from trl_recipes.run_folder import RunFolder, check_folder, check_run, prepare_run
from trl_recipes.training import stage as stages
from trl_recipes.training.seq2seq_comparisons import (
    Comparison,
    load_comparisons,
    preferred,
    sampled_outputs,
    scored,
)
from trl_recipes.training.seq2seq_measures import judge_of
from trl_recipes.training.seq2seq_pair_scorer import train_pair_scorer
from trl_recipes.training.seq2seq_pairs import PairArguments, load_pairs, load_sources, prompt_rows
from trl_recipes.training.seq2seq_pretraining import (
    Seq2SeqSizes,
    longest_text,
    pretrain,
    training_arguments,
)
from trl_recipes.training.seq2seq_settings import STAGES, StageArguments

if TYPE_CHECKING:
    from datasets import Dataset

CHECK_STEPS, CHECK_OUTPUTS = 20, 64

# Gives the training of a stage: called with `output_dir`, `args`, `before_training`; gives figures.
Prepare = Callable[[], Callable[..., dict[str, float]]]


class Chain:
    """The stages before PPO, and what all of them share.

    Args:
        data: the pairs.
        arguments: which stages are run, and how long.
        sizes: of a model from scratch.
        config: of PPO: its folder, seed, length of responses, whether to overwrite or only check.
        model_config: names the model to pretrain; without that stage, the one that PPO starts from.

    Attributes:
        run: the run folder; the stages' folders are `pretrained` and `reward_model` in it.
        last: name of the last of the stages that are run.
        done: whether PPO has been run already with the same settings.

    Raises:
        RecipeError: as `load_pairs` and `load_comparisons`; or the folder holds a run of other
            settings.
    """

    def __init__(
        self,
        data: PairArguments,
        arguments: StageArguments,
        sizes: Seq2SeqSizes,
        config: PPOConfig,
        model_config: Any,
    ):
        self.data, self.arguments, self.sizes, self.config = data, arguments, sizes, config
        self.base = model_config.model_name_or_path
        self.pairs = load_pairs(data, "train")
        self.held_out = load_pairs(data, "test")[: data.eval_prompts]
        self.sources = load_sources(data, self.pairs)
        self.judge = judge_of(arguments.score_function, data.dataset_name)
        given, self.scorer = arguments.comparisons, arguments.reward_model
        self.comparisons = None if given is None else load_comparisons(given)
        if self.scorer is not None:
            self.scorer = resolve(self.scorer, "model", source="--reward_model")
        everything = (data, arguments, sizes, config, model_config)
        self.settings = stages.settings_of(*everything)
        for name in ("stages", "eval_prompts"):  # which change nothing of the policy
            self.settings.pop(name, None)
        self.settings["data"] = stages.digest([*self.pairs, *self.sources])
        self.last = max(arguments.stages, key=STAGES.index)
        self.done = False
        self.run = RunFolder(check_folder(config.output_dir))
        if self.last == "ppo":
            self.done = stages.go_on(config, self.settings, "a policy")
            check_run(config)

    def pretrained(self) -> str:
        """Give the model that PPO starts from: pretrained now, found in the run folder, or named.

        Returns:
            Its folder or hub name.

        Raises:
            RecipeError: as `pretrain` and `stages.result_of`; or the stage is left out, and its
                result is not there.
        """
        if "pretrain" not in self.arguments.stages and self.base is not None:
            self._start, self._origin = resolve(self.base, "model"), self.base
            return self._start
        sizes = dataclasses.asdict(self.sizes)
        settings = {
            "pairs": stages.digest(self.pairs),
            "model_name_or_path": self.base,
            **(sizes if self.base is None else {"too_long": self.sizes.too_long}),
        }
        chosen = {"sizes": self.sizes, "model_name_or_path": self.base}
        train = partial(pretrain, self.pairs, self.held_out, **chosen)
        self._start = self._train(self.run.pretrained, "pretrain", settings, lambda: train)
        self._origin = stages.digest([settings])
        return self._start

    def prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple["Dataset", "Dataset"]:
        """Give PPO's sources, and those to judge by.

        Args:
            model: the pretrained encoder-decoder, which says how long a source may be.
            tokenizer: its own.

        Returns:
            Rows to train on, and held-out ones.

        Raises:
            RecipeError: as `tokenize`.
        """
        chosen = (tokenizer, longest_text(model, tokenizer), self.sizes.too_long)
        held_out = [pair["source"] for pair in self.held_out]
        return prompt_rows(self.sources, *chosen), prompt_rows(held_out, *chosen)

    def reward_model(self) -> str:
        """Give the reward model: trained now, found in the run folder, or named.

        Returns:
            Its folder or hub name.

        Raises:
            RecipeError: as `train_pair_scorer` and `stages.result_of`; or the stage is left out,
                and its result is not there.
        """
        if self.scorer is not None:
            return self.scorer
        rows = self.comparisons
        made_of = [*self.pairs, *self.sources, self.config.response_length]
        settings = {
            "start": self._origin,
            "comparisons": stages.digest(rows or made_of),
            "score_function": self.judge and self.judge.__name__,
        }

        def prepare():
            return partial(
                train_pair_scorer, rows or broadcast_from_main(self._compared), self._start
            )

        return self._train(self.run.reward_model, "reward", settings, prepare)

    def start_ppo(self) -> None:
        """Note that PPO has begun."""
        stages.begin(self.run.path, self.settings)

    def finish_ppo(self, steps: int) -> None:
        """Note that PPO is done and its model saved.

        Args:
            steps: how many it took.
        """
        stages.finish(self.run.path, self.settings, {"steps": steps})

    def _train(self, folder: Path, name: str, settings: dict, prepare: Prepare) -> str:
        """Run a stage, unless its result is there; its folder, or with --check one for the time."""
        prefix, config = f"{name}_", self.config
        mine = dataclasses.asdict(self.arguments)
        mine = {key: value for key, value in mine.items() if key.startswith(prefix)}
        mine.pop("reward_model", None)
        settings |= {**mine, "seed": config.seed}
        anew = config.overwrite_output_dir and name in self.arguments.stages
        begun = stages.has_begun(folder) and not anew
        result = stages.result_of(folder, settings, f"the {name} stage") if begun else None
        if result is not None:
            print_main(f"{_told(folder, result)}; there already, with the same settings")
            return str(folder)
        if name not in self.arguments.stages:
            flag = {"pretrain": "--model_name_or_path", "reward": "--reward_model"}[name]
            raise RecipeError(
                f"--stages: `{folder}` holds no finished {name} stage. Run that stage too, or name "
                f"a model with {flag}."
            )
        if config.check:
            folder = broadcast_from_main(_passing_folder) / folder.name
        steps = mine[f"{prefix}steps"]
        args = training_arguments(
            folder,
            steps=min(steps, CHECK_STEPS) if config.check else steps,
            batch_size=mine[f"{prefix}batch_size"],
            learning_rate=mine[f"{prefix}learning_rate"],
            seed=config.seed,
            quiet=config.disable_tqdm,
        )
        if config.check:
            args.save_strategy = "no"
            result = prepare()(output_dir=folder / "model", args=args)
            takes = duration(steps * result["seconds_a_step"])
            print_main(
                f"Checked {name} with {args.max_steps} steps; the whole stage takes {takes}."
            )
            return str(folder)

        @contextmanager
        def begin():
            if not self.run.config.exists():
                prepare_run(self.run.path)  # so that the whole run can be resumed from here on
            prepare_run(folder, overwrite=anew, resume=begun)
            stages.begin(folder, settings)
            yield

        args.resume_from_checkpoint = "true" if begun else None
        result = prepare()(output_dir=folder / "model", args=args, before_training=begin)
        stages.finish(folder, settings, result)
        write_report(folder)
        print_main(_told(folder, result))
        return str(folder)

    def _compared(self) -> list[Comparison]:
        """Comparisons of the pretrained model's own outputs."""
        count = CHECK_OUTPUTS if self.config.check else self.arguments.reward_outputs
        pairs, seed = self.pairs[:count], self.config.seed
        sources = self.sources[:count] if self.judge else [pair["source"] for pair in pairs]
        longest = self.config.response_length
        outputs = sampled_outputs(self._start, sources, longest=longest, seed=seed)
        if self.judge is None:
            return preferred(pairs, outputs, seed)
        swapped = round(len(outputs) * self.arguments.reward_swapped)
        others = [*sources[swapped:], *sources[:swapped]][:swapped]
        sources, outputs = [*sources, *others], [*outputs, *outputs[:swapped]]
        return scored(sources, outputs, self.judge, self.arguments.reward_noise, seed)


def _told(folder: Path, result: Mapping[str, float]) -> str:
    """A stage's figures in a line."""
    shown = (f"{k.replace('_', ' ')} {v:.3g}" for k, v in result.items() if k != "seconds_a_step")
    return f"{folder}: {', '.join(shown)}"


def _passing_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
