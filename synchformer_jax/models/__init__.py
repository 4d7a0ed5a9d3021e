"""The models: two extractors, their contrastive pretraining, the sync head, and synchronizability."""

from synchformer_jax.models.ast import AST
from synchformer_jax.models.avclip import SegmentAVCLIP
from synchformer_jax.models.config import SIZES, model_config
from synchformer_jax.models.flops import flops
from synchformer_jax.models.motionformer import Motionformer
from synchformer_jax.models.synchformer import SyncHead, Synchformer, Synchronizability

# By what a config calls `stage`. The last two are no stages of training, but weights of them are published.
MODELS = {
    "segment_avclip": SegmentAVCLIP,
    "sync": Synchformer,
    "synchronizability": Synchronizability,
    "motionformer": Motionformer,
    "ast": AST,
}

__all__ = [
    "AST",
    "MODELS",
    "SIZES",
    "Motionformer",
    "SegmentAVCLIP",
    "SyncHead",
    "Synchformer",
    "Synchronizability",
    "flops",
    "model_config",
]
