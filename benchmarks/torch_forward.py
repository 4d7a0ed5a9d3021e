"""Synchformer's forward pass in PyTorch, from weights under their published names, to measure ours against.

The operations are those of the published modules (github.com/v-iashin/Synchformer) at evaluation, in their order:
TimeSformer's divided attention with the CLS token in every group, AST with separate query, key and value projections,
PyTorch's own encoder layer over every token where only the CLS token is kept, and the sync head.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional as F

from synchformer_jax.ops import log_mel

Arrays = Mapping[str, torch.Tensor]


class TorchSynchformer:
    """The sync model. `fused` takes PyTorch's fused attention in place of the published products and softmax.

    Args:
        weights: by published name.
        heads: of both extractors.
        head_heads: of the sync head.
        fused: see above.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], heads: int = 12, head_heads: int = 8, fused: bool = False):
        self.w: Arrays = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.heads, self.head_heads, self.fused = heads, head_heads, fused
        self.depth = {part: 1 + max(self._layers(part)) for part in PARTS}
        self.pools = {
            name: self._encoder_layer(name)
            for name in ("vfeat_extractor.spatial_attn_agg", "afeat_extractor.freq_attn_agg")
        }
        self.window, self.filters = torch.from_numpy(log_mel.window()), torch.from_numpy(log_mel.mel_filters())

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, audio: np.ndarray) -> np.ndarray:
        """Logits `[B, classes]`.

        Args:
            frames: uint8 `[B, S, 16, H, W, 3]`, segments.
            audio: int16 `[B, S, 10240]`.
        """
        batch, segments = frames.shape[:2]
        pixels = torch.from_numpy(frames).flatten(0, 1).permute(0, 4, 1, 2, 3).float().div(255).sub(0.5).div(0.5)
        visual = self.see(pixels).reshape(batch, segments, -1, self.width)
        heard = self.hear(self.log_mel(torch.from_numpy(audio).flatten(0, 1).float() / 32768))
        heard = heard.reshape(batch, segments, -1, self.width)
        return self.compare(visual, heard).numpy()

    @property
    def width(self) -> int:
        """Of both extractors' tokens."""
        return self.w["vfeat_extractor.cls_token"].shape[-1]

    def log_mel(self, audio: torch.Tensor) -> torch.Tensor:
        """`[N, samples]` to `[N, 66, 128]`."""
        spectrum = torch.stft(audio, log_mel.FFT, log_mel.HOP, log_mel.WINDOW, self.window, return_complex=True)
        mel = torch.log(spectrum.abs().square().transpose(1, 2) @ self.filters + log_mel.EPS)
        mel = F.pad(mel, (0, 0, 0, log_mel.SEGMENT_MEL_FRAMES - mel.shape[1]))
        return (mel - log_mel.MEAN) / (2 * log_mel.STD)

    def see(self, x: torch.Tensor) -> torch.Tensor:
        """Motionformer: `[N, 3, 16, H, W]` to `[N, 8, D]`."""
        name, w = "vfeat_extractor.", self.w
        x = F.conv3d(x, w[f"{name}patch_embed_3d.proj.weight"], w[f"{name}patch_embed_3d.proj.bias"], (2, 16, 16))
        time, places = x.shape[2], x.shape[3] * x.shape[4]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([w[f"{name}cls_token"].expand(len(x), -1, -1), x], 1)
        space, when = w[f"{name}pos_embed"], w[f"{name}temp_embed"]
        both = space[:, 1:].repeat(1, time, 1) + when.repeat_interleave(places, 1)
        x = x + torch.cat([space[:, :1], both], 1)
        for layer in range(self.depth["visual"]):
            block = f"{name}blocks.{layer}."
            x = x + self._divided(self._norm(x, f"{block}norm3", 1e-6), f"{block}timeattn.", time, "time")
            x = x + self._divided(self._norm(x, f"{block}norm1", 1e-6), f"{block}attn.", time, "space")
            y = F.gelu(self._linear(self._norm(x, f"{block}norm2", 1e-6), f"{block}mlp.fc1"))
            x = x + self._linear(y, f"{block}mlp.fc2")
        x = self._norm(x[:, 1:], f"{name}norm", 1e-6).reshape(-1, places, x.shape[-1])
        return self._pool(x, f"{name}spatial_attn_agg").reshape(-1, time, x.shape[-1])

    def hear(self, x: torch.Tensor) -> torch.Tensor:
        """AST: `[N, 66, 128]` to `[N, 6, D]`."""
        name, w = "afeat_extractor.ast.", self.w
        patch = f"{name}embeddings.patch_embeddings.projection."
        x = F.conv2d(x[:, None].transpose(2, 3), w[f"{patch}weight"], w[f"{patch}bias"], 10)
        high, long = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        tokens = [
            w[f"{name}embeddings.{token}"].expand(len(x), -1, -1) for token in ("cls_token", "distillation_token")
        ]
        x = torch.cat([*tokens, x], 1) + w[f"{name}embeddings.position_embeddings"]
        for layer in range(self.depth["audio"]):
            block = f"{name}encoder.layer.{layer}."
            y = self._norm(x, f"{block}layernorm_before", 1e-12)
            parts = (self._linear(y, f"{block}attention.attention.{part}") for part in ("query", "key", "value"))
            x = x + self._linear(self._attend(*parts, self.heads), f"{block}attention.output.dense")
            y = F.gelu(self._linear(self._norm(x, f"{block}layernorm_after", 1e-12), f"{block}intermediate.dense"))
            x = x + self._linear(y, f"{block}output.dense")
        x = self._norm(x, f"{name}layernorm", 1e-12)[:, 2:]
        x = x.reshape(-1, high, long, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return self._pool(x, "afeat_extractor.freq_attn_agg").reshape(-1, long, x.shape[-1])

    def compare(self, visual: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """The sync head: features `[B, S, t, D]` to logits."""
        w, name = self.w, "transformer."
        v = self._norm(self._linear(visual, "vproj"), f"{name}vis_in_lnorm", 1e-5).flatten(1, 2)
        a = self._norm(self._linear(heard, "aproj"), f"{name}aud_in_lnorm", 1e-5).flatten(1, 2)
        off, mod = (w[f"{name}{token}"].expand(len(v), -1, -1) for token in ("OFF_tok", "MOD_tok"))
        x = torch.cat([off, v, mod, a], 1) + w[f"{name}pos_emb_cfg.pos_emb"]
        for layer in range(self.depth["head"]):
            block = f"{name}blocks.{layer}."
            y = self._norm(x, f"{block}ln1", 1e-5)
            parts = (self._linear(y, f"{block}attn.{part}") for part in ("query", "key", "value"))
            x = x + self._linear(self._attend(*parts, self.head_heads), f"{block}attn.proj")
            y = F.gelu(self._linear(self._norm(x, f"{block}ln2", 1e-5), f"{block}mlp.0"))
            x = x + self._linear(y, f"{block}mlp.2")
        return self._linear(self._norm(x, f"{name}ln_f", 1e-5)[:, 0], f"{name}off_head")

    def _divided(self, x: torch.Tensor, name: str, time: int, axis: str) -> torch.Tensor:
        batch, tokens, width = x.shape
        heads, places = self.heads, (tokens - 1) // time
        parts = self._linear(x, f"{name}qkv").chunk(3, dim=-1)
        q, k, v = (p.reshape(batch, tokens, heads, -1).transpose(1, 2).flatten(0, 1) for p in parts)  # [B heads, N, d]
        of_cls = self._softmax_product(q[:, :1], k, v)

        def groups(y):  # [B heads groups, members, d]
            y = y[:, 1:].reshape(len(y), time, places, y.shape[-1])
            return (y.transpose(1, 2) if axis == "time" else y).flatten(0, 1)

        count = places if axis == "time" else time

        def with_cls(y):
            return torch.cat([y[:, :1].repeat_interleave(count, 0), groups(y)], 1)

        y = self._softmax_product(groups(q), with_cls(k), with_cls(v))
        y = y.reshape(batch * heads, count, -1, y.shape[-1])
        y = (y.transpose(1, 2) if axis == "time" else y).reshape(batch * heads, tokens - 1, -1)
        y = torch.cat([of_cls, y], 1).reshape(batch, heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, width)
        return self._linear(y, f"{name}proj")

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        split = (p.reshape(*p.shape[:2], heads, -1).transpose(1, 2) for p in (q, k, v))
        return self._softmax_product(*split).transpose(1, 2).flatten(2)

    def _softmax_product(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v

    def _pool(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self.pools[name](torch.cat([self.w[f"{name}.cls_token"].expand(len(x), -1, -1), x], 1))[:, 0]

    def _encoder_layer(self, name: str) -> torch.nn.Module:
        state = {key.removeprefix(f"{name}."): value for key, value in self.w.items() if key.startswith(f"{name}.")}
        del state["cls_token"]
        hidden, width = state["linear1.weight"].shape
        layer = torch.nn.TransformerEncoderLayer(
            width, self.heads, hidden, 0.0, torch.nn.GELU(), 1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict(state)
        return layer.eval()

    def _layers(self, part: str) -> set[int]:
        prefix = PARTS[part]
        return {int(name.removeprefix(prefix).split(".")[0]) for name in self.w if name.startswith(prefix)}

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)


PARTS = {
    "visual": "vfeat_extractor.blocks.",
    "audio": "afeat_extractor.ast.encoder.layer.",
    "head": "transformer.blocks.",
}
