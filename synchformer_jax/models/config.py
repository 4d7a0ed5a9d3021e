"""The shape of the models, as one `ml_collections.ConfigDict`."""

from ml_collections import ConfigDict

from synchformer_jax.errors import UserError

SIZES = {  # width, depth, heads of both extractors; width of the sync head
    "Ti": (192, 12, 3, 192),
    "S": (384, 12, 6, 384),
    "B": (768, 12, 12, 768),
    "L": (1024, 24, 16, 1024),
}


def model_config(size: str = "B") -> ConfigDict:
    """The configuration of all models at one of the sizes Ti, S, B, L (widths and depths of ViT); B is the published.

    Raises:
        UserError: no such size.
    """
    if size not in SIZES:
        raise UserError(f"There is no model size {size!r}. Choose one of {', '.join(SIZES)}.")
    width, depth, heads, head_width = SIZES[size]
    config = ConfigDict()
    config.segments = 14
    config.visual = ConfigDict(
        {
            "image_size": 224,  # pixels of the square frame that the position embeddings are made for
            "patch_size": 16,  # pixels
            "tubelet": 2,  # frames in one token
            "frames": 16,  # frames in one segment
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": 4,
            "drop_path": 0.2,  # grows linearly from 0 to this over the depth
            "attention": "divided",  # or "joint", "trajectory"
            "position": "separate",  # space and time embeddings added; or "joint", one for each tubelet
            "trajectory_values": "input",  # as in the published weights; or "projected", as in the paper
            "patch_init": "lecun",  # or "dct"
            "position_init": "learned",  # time starts at zero as published; or "sinusoidal"
        }
    )
    config.audio = ConfigDict(
        {
            "mel_bins": 128,
            # Log-mel frames in one segment follow its length: 66 for 0.64 s, of which the last is empty.
            "frames": config.visual.get_ref("frames") * 4 + 2,
            "patch_size": 16,
            "stride": 10,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": 4,
            "drop_path": 0.0,
        }
    )
    config.head = ConfigDict(
        {
            "width": head_width,
            "depth": 3,
            "heads": 8,
            "mlp_ratio": 4,
            "dropout": 0.1,
            "token_dropout": 0.0,
            "classes": 21,
            "lag_profile": False,  # adds a learned cross-correlation of the two streams to the logits
            "lag_heads": 4,
            "lag_width": 32,
        }
    )
    config.temperature = ConfigDict({"init": 0.07, "min": 0.001, "max": 0.5})
    config.avclip = ConfigDict(
        {
            "loss": "info_nce",  # or "sigmoid" (SigLIP), which has its own temperature and learns a bias
            "sigmoid_temperature": 0.1,
            "sigmoid_bias": -10.0,
            "global_pool": "none",  # "mean" or "attention": embeds the whole clip too, from its segments
        }
    )
    config.compute = ConfigDict(
        {
            "dtype": "bfloat16",
            "remat": "none",  # or "full", "dots"
            "attention": "auto",  # by platform; or "einsum", "xla", "cudnn"
            "unroll": False,  # True writes the layers out instead of scanning: longer to compile
        }
    )
    return config


CHOICES = {
    "visual.attention": ("divided", "joint", "trajectory"),
    "visual.position": ("separate", "joint"),
    "visual.trajectory_values": ("input", "projected"),
    "visual.patch_init": ("lecun", "dct"),
    "visual.position_init": ("learned", "sinusoidal"),
    "avclip.loss": ("info_nce", "sigmoid"),
    "avclip.global_pool": ("none", "mean", "attention"),
    "compute.dtype": ("bfloat16", "float16", "float32"),
    "compute.remat": ("none", "full", "dots"),
    "compute.attention": ("auto", "einsum", "xla", "cudnn"),
}


def validate(config: ConfigDict) -> None:
    """Checks that the parts of a model configuration fit together.

    Raises:
        UserError: naming the field and what it must be.
    """
    for name, choices in CHOICES.items():
        value = config[name.split(".")[0]][name.split(".")[1]]
        if value not in choices:
            raise UserError(f"model.{name} is {value!r}. It must be one of {', '.join(choices)}.")
    for part in ("visual", "audio", "head"):
        width, heads = config[part].width, config[part].heads
        if width < 1 or heads < 1 or width % heads:
            raise UserError(f"model.{part}.width is {width} and does not divide into model.{part}.heads = {heads}.")
        if config[part].depth < 1:
            raise UserError(f"model.{part}.depth is {config[part].depth}. It must be 1 or more.")
    visual, audio = config.visual, config.audio
    _divides("visual.image_size", visual.image_size, "visual.patch_size", visual.patch_size)
    _divides("visual.frames", visual.frames, "visual.tubelet", visual.tubelet)
    for name in ("mel_bins", "frames"):
        if audio[name] < audio.patch_size:
            raise UserError(f"model.audio.{name} is {audio[name]}; it must hold a patch of {audio.patch_size}.")
    if config.head.lag_profile and config.head.classes < 3:
        raise UserError("model.head.lag_profile needs a grid of offsets: set model.head.classes to 3 or more.")


def _divides(name: str, value: int, unit_name: str, unit: int) -> None:
    if unit < 1 or value < unit or value % unit:
        raise UserError(f"model.{name} is {value}. It must be a multiple of model.{unit_name} = {unit}.")


def visual_tokens(config: ConfigDict) -> int:
    """Visual tokens of one segment."""
    return config.visual.frames // config.visual.tubelet


def audio_grid(config: ConfigDict) -> tuple[int, int]:
    """Patches of one segment's log-mel: along frequency, along time (the latter is the number of audio tokens)."""
    audio = config.audio
    return tuple((audio[name] - audio.patch_size) // audio.stride + 1 for name in ("mel_bins", "frames"))
