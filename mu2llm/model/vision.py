"""The vision tower: the 3D ViT of M3D-CLIP (arXiv 2404.00578), and the projector behind it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mu2llm.model.configuration import Mu2VisionConfig


class Block(GradientCheckpointingLayer):
    """One pre-norm transformer block."""

    def __init__(self, config: Mu2VisionConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTower(nn.Module):
    """Frames (B, K, H, W) in [0, 1] → patch tokens (B, N, D); the class token is used and dropped."""

    def __init__(self, config: Mu2VisionConfig):
        super().__init__()
        self.config = config
        slices, rows, columns = config.patch_size
        self.patch_embedding = nn.Linear(slices * rows * columns, config.hidden_size)
        gz, gy, gx = config.grid
        self.position_embeddings = nn.Parameter(torch.zeros(1, gz * gy * gx, config.hidden_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def patches(self, frames: Tensor) -> Tensor:
        """Frames (B, K, H, W), centred, cut into flattened patches (B, N, voxels)."""
        if tuple(frames.shape[1:]) != self.config.image_size:
            raise ValueError(
                f"a frame is {tuple(frames.shape[1:])} (slices, rows, columns), the model reads "
                f"{self.config.image_size}: prepare volumes with the processor saved beside the model"
            )
        frames = (frames - self.config.image_mean) / self.config.image_std
        (gz, gy, gx), (pz, py, px) = self.config.grid, self.config.patch_size
        cut = frames.reshape(-1, gz, pz, gy, py, gx, px).permute(0, 1, 3, 5, 2, 4, 6)
        return cut.reshape(-1, gz * gy * gx, pz * py * px)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.patch_embedding(self.patches(frames)) + self.position_embeddings
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]


class Projector(nn.Module):
    """Averages cubes of patch tokens and maps them to the decoder's width: (B, N, Dv) → (B, N / p³, D).

    A grid that the cube does not divide keeps whole cubes only, as `avg_pool3d` does.
    """

    def __init__(self, config: Mu2VisionConfig, pooling_size: int, width: int):
        super().__init__()
        self.grid = config.grid
        self.pooling_size = pooling_size
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        p = self.pooling_size
        if p > 1:
            z, y, x = (n // p for n in self.grid)  # avg_pool3d would do, but has no bfloat16 on CPU
            cubes = tokens.unflatten(1, self.grid)[:, : z * p, : y * p, : x * p]
            cubes = cubes.unflatten(3, (x, p)).unflatten(2, (y, p)).unflatten(1, (z, p))
            tokens = cubes.mean((2, 4, 6)).flatten(1, 3)
        return self.fc2(F.gelu(self.fc1(tokens)))
