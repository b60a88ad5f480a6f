"""The config sections of the engine: the run, its optimizer and its learning rate. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from slmjax.errors import UserError, did_you_mean

BUDGETS = ("steps", "tokens", "tokens_per_param", "epochs")
OptimizerName = Literal["adamw", "adafactor", "lion", "muon"]
ScheduleName = Literal["cosine", "constant", "linear", "wsd", "inverse_sqrt"]
DecayShape = Literal["linear", "cosine", "sqrt"]


@dataclass(frozen=True)
class TasksConfig:
    """Tasks that the network is scored on as it learns, those of `slmjax evaluate --tasks`; none by default."""

    names: tuple[str, ...] = ()  # of tasks, groups, tags or presets, such as "in_training"
    every: int = 1  # evaluations; beside these at the end, and before a fine-tune's first step
    limit: int = 100  # items of each task; 0: a preset's own number, else all
    num_fewshot: int = -1  # examples in each prompt; -1: a preset's or the task's own number
    data_dir: str = ""  # of the tasks' files; "": the hub's data sets
    allow_code: bool = False  # whether tasks may run programs that the network writes

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"training.tasks.every={self.every} must be at least 1.")
        if self.limit < 0:
            raise UserError(f"training.tasks.limit={self.limit} must be 0 (all) or above.")
        if self.num_fewshot < -1:
            raise UserError(f"training.tasks.num_fewshot={self.num_fewshot} must be -1 (the task's own) or above.")


@dataclass(frozen=True)
class TrainingConfig:
    """The budget, the batch and the policies of the loop. Give one of steps, tokens, tokens_per_param, epochs."""

    steps: int = 0
    tokens: int = 0
    tokens_per_param: float = 0.0  # 20 is Chinchilla's; SmolLM2-135M was trained with 15,600
    epochs: float = 0.0  # passes over the data: with several sources, the budget that ends when each has had that many
    batch_size: int = 32  # rows of a global batch; each row is data.sequence_length tokens
    accumulation: int = 1  # micro-batches that a batch is cut into
    seed: int = 0
    clip_norm: float = 1.0  # 0: no clipping
    z_loss: float = 1e-4
    ema_decay: float = 0.0  # 0: no average; the average is what is evaluated and exported
    spike_factor: float = 10.0  # skip a step whose gradient norm exceeds this times its running mean; 0: never
    max_skipped: int = 20  # stop after this many skipped steps in a row
    dtype: str = "auto"  # of computation: auto, float32, bfloat16 (auto: float32 on CPU, bfloat16 elsewhere)
    attention: str = "auto"  # auto, xla, splash, cudnn
    remat: str = "auto"  # none, dots, projections, attention, context, full
    # auto: full (CPU: none, frozen base: projections)
    scan_unroll: int = -1  # layers in one iteration of the scan, 0 all (-1: 1; all on a CPU without remat)
    log_every: int = 10
    eval_every: int = 500  # steps; 0: at the end only
    eval_batches: int = 50  # 0: the whole validation split
    profile_at: int = -1  # step at which a profiler trace of 3 steps starts; -1: none
    branch_from: str = ""  # start from the newest checkpoint of another run's workdir (WSD: its stable phase) ...
    branch_step: int = -1  # ... or from this one
    neftune_alpha: float = 0.0  # noise on embeddings in training (5 to 15 for instructions); 0: none
    early_stopping: int = 0  # stop after this many evaluations without a lower validation loss; 0: never
    early_stopping_delta: float = 0.0  # what counts as lower
    samples: int = 0  # prompts of the validation split that are answered at each evaluation
    sample_prompts: tuple[str, ...] = ()  # and these
    sample_tokens: int = 48  # of an answer, at most
    tasks: TasksConfig = dataclasses.field(default_factory=TasksConfig)  # scored at evaluations

    def __post_init__(self):
        if isinstance(self.tasks, Mapping):  # from a config file or JSON
            object.__setattr__(self, "tasks", _tasks(self.tasks))
        given = [name for name in BUDGETS if getattr(self, name)]
        keys = ", ".join(f"training.{name}" for name in given or BUDGETS)
        if not given:
            raise UserError(f"No budget is set: give exactly one of {keys}.")
        if len(given) > 1:
            raise UserError(
                f"The budget is set {len(given)} times, by {keys}: give one of them and leave the others 0."
            )
        for name in ("batch_size", "accumulation", "log_every", "max_skipped", "sample_tokens", given[0]):
            if getattr(self, name) <= 0:
                raise UserError(f"training.{name}={getattr(self, name)} must be above 0.")
        off = ("clip_norm", "z_loss", "spike_factor", "eval_every", "eval_batches", "neftune_alpha", "samples")
        for name in (*off, "early_stopping", "early_stopping_delta"):
            if not getattr(self, name) >= 0:  # NaN too: a negative clip_norm would climb instead of descend
                raise UserError(f"training.{name}={getattr(self, name)} must be 0 (off) or above.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"training.batch_size={self.batch_size} is not a multiple of training.accumulation={self.accumulation}."
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"training.dtype is {self.dtype!r}; choose one of auto, float32, bfloat16.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay={self.ema_decay} must be at least 0 and below 1.")


def _tasks(values: Mapping[str, Any]) -> TasksConfig:
    known = [field.name for field in dataclasses.fields(TasksConfig)]
    for key in values:
        if key not in known:
            raise UserError(f"The config has an unknown key training.tasks.{key}; {did_you_mean(str(key), known)}")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return TasksConfig(**given)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its numbers. Weight decay is decoupled and multiplied by the learning rate, as in torch.

    The peak learning rate that suits differs: adamw and muon share one (muon's update is scaled to AdamW's RMS), lion
    wants 3-10 times less and 3-10 times more decay (arXiv:2302.06675). adafactor is used without its parameter scale
    and so takes AdamW's rate; it ignores b2 and eps (its decay is 1 - step^-0.8), and b1 = 0 frees its momentum.
    """

    name: OptimizerName = "adamw"
    b1: float = 0.9  # momentum; muon's own momentum is `muon_momentum`
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False  # kernels are always decayed, norm scales and biases never
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"  # the first moment's storage
    muon_momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise UserError(f"optimizer.name is {self.name!r}; choose one of {', '.join(get_args(OptimizerName))}.")
        for field in ("b1", "b2", "muon_momentum"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"optimizer.{field} is {getattr(self, field)}; it must lie in [0, 1).")
        if self.eps <= 0 or self.weight_decay < 0:
            raise UserError("optimizer.eps must be above 0 and optimizer.weight_decay 0 or more.")
        if self.momentum_dtype not in ("float32", "bfloat16"):
            raise UserError(f"optimizer.momentum_dtype is {self.momentum_dtype!r}; choose float32 or bfloat16.")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The course of the learning rate from the first step to the last.

    Every schedule starts with a linear warmup to `peak`: step s of it has the rate peak * (s + 1) / warmup_steps, so
    that the first update is not wasted on a rate of zero. Then

      constant      stays at the peak
      linear        falls in a straight line to final_fraction * peak at the last step
      cosine        falls along a half cosine to final_fraction * peak (Loshchilov & Hutter, arXiv:1608.03983)
      inverse_sqrt  peak * sqrt(warmup_steps / (s + 1)), not below final_fraction * peak (arXiv:1706.03762)
      wsd           stays at the peak, then decays over the last decay_fraction of the steps (MiniCPM, arXiv:2404.06395)

    In the stable phase of `wsd` the rate does not depend on the total number of steps: a checkpoint from there can be
    continued for longer, or branched into its decay at `decay_start`.
    """

    name: ScheduleName = "cosine"
    peak: float = 3e-3
    warmup_steps: int = 0  # 0: warmup_fraction of all steps
    warmup_fraction: float = 0.02  # used where warmup_steps is 0; 0: no warmup. For wsd branching set warmup_steps.
    final_fraction: float = 0.1  # the floor, as a fraction of the peak
    decay_fraction: float = 0.2  # wsd: the share of all steps that decays
    decay_shape: DecayShape = "sqrt"  # wsd: "sqrt" is 1 - sqrt(progress) (Hägele et al., arXiv:2405.18392)
    decay_start: int | None = None  # wsd: the first step of the decay, instead of decay_fraction

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise UserError(f"schedule.name is {self.name!r}; choose one of {', '.join(get_args(ScheduleName))}.")
        if self.decay_shape not in get_args(DecayShape):
            choices = ", ".join(get_args(DecayShape))
            raise UserError(f"schedule.decay_shape is {self.decay_shape!r}; choose one of {choices}.")
        if not self.peak > 0:
            raise UserError(f"schedule.peak is {self.peak}; the peak learning rate must be above 0, such as 3e-3.")
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}; give 0 (use warmup_fraction) or more.")
        for field in ("warmup_fraction", "final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"schedule.{field} is {getattr(self, field)}; it is a fraction between 0 and 1.")
        if self.decay_start is not None and (self.name != "wsd" or self.decay_start < 0):
            raise UserError("schedule.decay_start is a step, 0 or later, of the wsd schedule only; set it to None.")


def __getattr__(name: str) -> Any:
    # Config files take these from here, where they were before a run's config got sections of every room.
    if name in ("RunConfig", "default_config", "run_config", "set_budget"):
        return getattr(import_module("slmjax.recipes.config"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
