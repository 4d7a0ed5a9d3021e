"""What a training config holds, and what can be told wrong about one before anything is compiled."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from synchformer_jax.data.clips import PLANES, RGB
from synchformer_jax.errors import UserError
from synchformer_jax.models.config import model_config
from synchformer_jax.ops.log_mel import MEL_BINS

STAGES = ("segment_avclip", "sync", "synchronizability")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant")
PIXELS = (PLANES, RGB)
# What a run cannot change on the way: the rest of its checkpoint would no longer mean the same.
FIXED_IN_A_RUN = (
    "stage",
    "seed",
    "model",
    "optimizer",
    "freeze",
    "contrastive",
    "augment",
    "data.batch_size",
    "data.size",
    "data.weights",
)


def base_config(stage: str, size: str = "B") -> ConfigDict:
    """The fields of every config, with the defaults that all stages share.

    Args:
        stage: one of `STAGES`.
        size: of the model: Ti, S, B or L.
    """
    return ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "model": model_config(size),
            "data": {
                "train": "",  # a folder, or several with commas between
                "weights": (),  # of the folders in training; () takes all their records alike
                "valid": "",
                "test": "",
                "batch_size": 16,  # clips a step, over all devices
                "size": 224,  # pixels of the square crop
                "pixels": "yuv420",  # the form they travel in: yuv420, or rgb where the device is slower than the host
                "fixed_offsets": "",  # published tables by which stage sync is evaluated, with commas between
                "workers": 8,
                "visual_features": "",  # a folder of synchformer_jax.train.cache
                "max_corrupt_share": 0.01,
                "jitter_sec": 0.05,
            },
            # Shares of segments (in stage 1) or clips that change in training; upscale is of clips in all stages.
            "augment": {
                "upscale": 0.0,
                "flip": 0.5,
                "colour_jitter": 0.0,
                "greyscale": 0.0,
                "reverb": 0.0,
                "volume": 0.0,
                "pitch_shift": 0.0,
                "low_pass": 0.0,
                "noise": 0.0,
            },
            "contrastive": {
                "group_clips": 2,  # clips whose segments are each other's negatives; 0: the whole batch
                "chunk": 0,  # rows of a group's similarities held at once; 0: all
                "segment_weight": 1.0,
                "global_weight": 1.0,  # of the level that model.avclip.global_pool adds
                # Slowly following encoders give what each segment is compared with, and a queue of earlier batches.
                "momentum_encoders": False,
                "momentum": 0.995,
                "queue_clips": 0,  # a multiple of data.batch_size
                "alpha": 0.0,  # the weight of their own answer in the targets; ALBEF takes 0.4
                "alpha_steps": 0,  # over which it grows from 0; published: the first epoch
            },
            # Work folders of earlier runs (avclip, sync), or files of weights (the others).
            "init": {
                "motionformer": "",
                "ast": "",
                "published": "",
                "avclip": "",
                "sync": "",
                "random_extractors": False,
            },
            "freeze": (),  # prefixes of parameter names
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "per_clips": 0,  # if > 0, the learning rate is meant for so many clips and grows with the batch
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "schedule": "cosine",
                "warmup_steps": 1000,
                "clip_norm": 1.0,
            },
            "train": {
                "steps": 100_000,
                "log_every": 50,
                "eval_every": 1000,  # -1: at the end only; 0: never
                "eval_batches": 0,  # 0: all
                "checkpoint_every": 1000,
                "keep": 2,  # the last ones, besides the best
                "patience": 0,  # evaluations without a better one until the run stops; 0: never
                "accumulate": 1,  # parts a batch is computed in
                "on_bad_step": "stop",  # or "skip": what a loss that is no number, or a spike, does
                "spike_factor": 0.0,  # times the median gradient norm of late is a spike; 0: there are none
                "wandb_project": "",  # also tell Weights & Biases
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )


def validate(config: ConfigDict, devices: int, processes: int = 1, *, paths: bool = True) -> None:
    """Finds what would fail later, while nothing has been computed yet.

    Args:
        config: of a run.
        devices: the number of devices of all processes.
        processes: the number of processes.
        paths: also whether data and earlier runs are there.

    Raises:
        UserError: names the field and the fix.
    """
    _choice(config, "stage", STAGES)
    _choice(config, "optimizer.name", OPTIMIZERS)
    _choice(config, "optimizer.schedule", SCHEDULES)
    _choice(config, "train.on_bad_step", ("stop", "skip"))
    factor = config.train.spike_factor
    _require(config, "train.spike_factor", factor == 0 or factor > 1, "Give 0 for no limit, or more than 1, such as 10")
    for field in ("train.steps", "train.log_every", "train.keep", "train.accumulate", "data.batch_size", "data.size"):
        _require(config, field, get(config, field) >= 1, "Give 1 or more")
    for field in ("train.checkpoint_every", "train.eval_batches", "train.patience", "data.workers", "data.jitter_sec",
                  "optimizer.warmup_steps", "optimizer.clip_norm", "optimizer.weight_decay", "optimizer.per_clips",
                  "contrastive.group_clips", "contrastive.chunk", "seed"):  # fmt: skip
        _require(config, field, get(config, field) >= 0, "Give 0 or more")
    for field in ("optimizer.b1", "optimizer.b2"):
        _require(config, field, 0 <= get(config, field) < 1, "Give 0 or more and less than 1")
    _require(config, "data.max_corrupt_share", 0 <= config.data.max_corrupt_share <= 1, "Give a share between 0 and 1")
    _require(config, "train.eval_every", config.train.eval_every >= -1, "Give -1 (at the end), 0 (never) or more")
    _require(config, "optimizer.learning_rate", config.optimizer.learning_rate > 0, "Give a positive number")
    _choice(config, "data.pixels", PIXELS)
    even = config.data.pixels == RGB or config.data.size % 2 == 0
    _require(config, "data.size", even, "Give an even number, or --config.data.pixels=rgb")
    for name in config.augment:
        _require(config, f"augment.{name}", 0 <= config.augment[name] <= 1, "Give a share between 0 and 1")
    _validate_mesh(config, devices, processes)
    if config.stage == "segment_avclip":
        _validate_contrastive(config)
    _validate_sizes(config)
    if paths:
        _validate_paths(config)


def _validate_mesh(config: ConfigDict, devices: int, processes: int) -> None:
    shape = mesh_shape(config, devices)
    shards = shape[0] * shape[1]
    batch, parts = config.data.batch_size, config.train.accumulate
    if batch % (shards * parts) or batch % processes:
        raise UserError(
            f"config.data.batch_size={batch} does not divide over mesh.data x mesh.fsdp = {shards} devices times "
            f"train.accumulate = {parts} and {processes} processes. "
            f"Give --config.data.batch_size a multiple of {shards * parts}."
        )


def _validate_contrastive(config: ConfigDict) -> None:
    options, batch, parts = config.contrastive, config.data.batch_size, config.train.accumulate
    group = options.group_clips
    if group and (batch // parts) % group:
        raise UserError(
            f"config.contrastive.group_clips={group} does not divide the {batch // parts} clips that are computed "
            f"together (data.batch_size / train.accumulate). Give a divisor of {batch // parts}, or 0 for all."
        )
    for name in ("chunk", "group_clips", "queue_clips", "alpha_steps"):
        _require(config, f"contrastive.{name}", options[name] >= 0, "Give 0 or more")
    for name in ("momentum", "alpha"):
        _require(config, f"contrastive.{name}", 0 <= options[name] <= 1, "Give a number between 0 and 1")
    if not options.momentum_encoders and (options.queue_clips or options.alpha):
        field = "queue_clips" if options.queue_clips else "alpha"
        raise UserError(
            f"config.contrastive.{field}={options[field]} needs momentum encoders. "
            "Give --config.contrastive.momentum_encoders=True."
        )
    if options.queue_clips % batch:
        raise UserError(
            f"config.contrastive.queue_clips={options.queue_clips} is no multiple of data.batch_size={batch}: a step "
            f"replaces that many. Give {max(1, options.queue_clips // batch) * batch}."
        )
    if options.alpha and config.model.avclip.loss == "sigmoid":
        raise UserError(
            "config.contrastive.alpha weighs a distribution over all answers, which the sigmoid loss has not. Give "
            "--config.contrastive.alpha=0, or --config.model.avclip.loss=info_nce."
        )


def _validate_sizes(config: ConfigDict) -> None:
    visual = config.model.visual
    if config.data.size != visual.image_size:
        raise UserError(
            f"config.data.size={config.data.size} is not the model's config.model.visual.image_size="
            f"{visual.image_size}. Give both the same number of pixels."
        )
    _require(config, "model.audio.mel_bins", config.model.audio.mel_bins == MEL_BINS, f"Give {MEL_BINS}, as computed")
    if config.stage != "segment_avclip":
        fix = "Give an even number: segments overlap by half"
        _require(config, "model.visual.frames", visual.frames % 2 == 0, fix)
    for part in ("visual", "audio", "head"):
        width, heads = config.model[part].width, config.model[part].heads
        _require(config, f"model.{part}.heads", width % heads == 0, f"Give a divisor of the width {width}")
    _require(
        config,
        "model.visual.patch_size",
        visual.image_size % visual.patch_size == 0,
        f"Give a divisor of model.visual.image_size = {visual.image_size}",
    )
    _require(
        config, "train.steps", config.train.steps > config.optimizer.warmup_steps, "Give more than the warm-up has"
    )


def _validate_paths(config: ConfigDict) -> None:
    if not config.data.train:
        raise UserError(
            "config.data.train names no data set. Give --config.data.train=DIR, a folder that "
            "python -m data_prep.folder VIDEOS DIR has written."
        )
    if config.train.eval_every and not config.data.valid:
        raise UserError(
            "config.data.valid names no data set, but train.eval_every asks for evaluation. "
            "Give --config.data.valid=DIR, or --config.train.eval_every=0."
        )
    for split in ("train", "valid") if config.train.eval_every else ("train",):
        for folder in config.data[split].split(","):
            if not Path(folder.strip()).is_dir():
                raise UserError(
                    f"config.data.{split}: there is no folder {folder.strip()}. "
                    f"Give --config.data.{split} the folder of a prepared data set."
                )
    init = config.init
    for name in ("avclip", "sync"):
        if init[name] and not (Path(init[name]) / "checkpoints").is_dir():
            raise UserError(
                f"config.init.{name}: {init[name]} holds no checkpoints. "
                f"Give --config.init.{name} the --workdir of a finished run."
            )
    if config.stage == "sync" and not (init.avclip or init.published or init.random_extractors):
        raise UserError(
            "Stage sync needs trained extractors. Give --config.init.avclip=DIR, the --workdir of a segment_avclip "
            "run, or --config.init.published=FILE, or for a control --config.init.random_extractors=True."
        )
    if config.stage == "synchronizability" and not (init.sync or init.published):
        raise UserError(
            "Stage synchronizability fine-tunes a sync model. Give --config.init.sync=DIR, the --workdir of a "
            "sync run, or --config.init.published=FILE."
        )
    for name in ("published", "motionformer", "ast"):
        if init[name] and not Path(init[name]).is_file():
            raise UserError(f"config.init.{name}: there is no file {init[name]}. Give a published checkpoint.")
    weights, folders = config.data.weights, config.data.train.split(",")
    if weights and (len(weights) != len(folders) or min(weights) <= 0):
        raise UserError(
            f"config.data.weights={tuple(weights)} does not fit the {len(folders)} data sets of config.data.train. "
            "Give one positive number for each, or none."
        )
    if config.data.fixed_offsets and config.stage != "sync":
        raise UserError(
            f"config.data.fixed_offsets serves the evaluation of stage sync only, not {config.stage}. Leave it out."
        )
    features = config.data.visual_features
    if features and config.stage != "sync":
        raise UserError(f"config.data.visual_features serves stage sync only, not {config.stage}. Leave it out.")
    if features and not Path(features).is_dir():
        raise UserError(
            f"config.data.visual_features: there is no folder {features}. Write it with "
            "python -m synchformer_jax.train.cache, or leave the field out."
        )


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """The sizes of the mesh axes data, fsdp and tensor, with one -1 replaced by what the devices leave.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    given = 1
    for size in sizes:
        given *= size if size > 0 else 1
    if sizes.count(-1) == 1 and min(size for size in [*sizes, 1] if size != -1) >= 1 and devices % given == 0:
        sizes[sizes.index(-1)] = devices // given
        given = devices
    if min(sizes) < 1 or given != devices:
        raise UserError(
            f"config.mesh data={config.mesh.data}, fsdp={config.mesh.fsdp}, tensor={config.mesh.tensor} does not fit "
            f"{devices} device(s). Give sizes whose product is {devices}; one may be -1 for what is left."
        )
    return sizes[0], sizes[1], sizes[2]


def get(config: ConfigDict, field: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in field.split("."):
        if not isinstance(config, ConfigDict) or name not in config:
            return None
        config = config[name]
    return config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """As plain JSON values; tuples turn into lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The reverse of `to_dict`; lists turn into tuples, and fields that came later have their defaults."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(item) for name, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    def fill(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        for name, value in defaults.items():
            given[name] = fill(given.get(name, {}), value) if isinstance(value, dict) else given.get(name, value)
        return given

    return ConfigDict(fill(tuples(values), base_config(values["stage"]).to_dict()))


def require_same_run(old: ConfigDict, new: ConfigDict, workdir: str) -> None:
    """Checks that `new` may go on where a run with `old` stopped: more steps are fine, another model is not.

    Raises:
        UserError: names the first field that differs.
    """
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    for field in sorted(before.keys() | after.keys()):
        fixed = any(field == prefix or field.startswith(prefix + ".") for prefix in FIXED_IN_A_RUN)
        if fixed and before.get(field) != after.get(field):
            raise UserError(
                f"{workdir} holds a run with config.{field}={before.get(field)}, now it is {after.get(field)}. "
                "Give the same value to go on with that run, or another --workdir for a new one."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _choice(config: ConfigDict, field: str, choices: tuple[str, ...]) -> None:
    _require(config, field, get(config, field) in choices, f"Give one of {', '.join(choices)}")


def _require(config: ConfigDict, field: str, holds: bool, fix: str) -> None:
    if not holds:
        raise UserError(f"config.{field}={get(config, field)} cannot be. {fix}.")
