"""Recurrent networks, graph networks, segmentation, diffusion and other packages of the census."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evidence.benches.wild import Wild, diffusion, ids, image, other


class _Recurrent(nn.Module):
    """An embedding, a recurrent layer and a classifier of its last output. (N, T) -> (N, 4)."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embed, self.rnn, self.fc = nn.Embedding(50, 24), layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) -> (N, 4)."""
        out: Tensor = self.fc(self.rnn(self.embed(x))[0][:, -1])
        return out


def _recurrent(build: Callable[[], nn.Module], width: int) -> Wild:
    return Wild("torch", lambda: (_Recurrent(build(), width), torch.randint(50, (2, 9))))


class _Graph(nn.Module):
    """Two graph convolutions and a linear layer, by the layers of torch_geometric. (nodes, 8), (2, edges) -> (nodes, 3)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.fc = first, second, nn.Linear(24, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """(nodes, 8), (2, edges) -> (nodes, 3)."""
        out: Tensor = self.fc(self.second(self.first(x, edges).relu(), edges).relu())
        return out


def _geometric(kind: str) -> Wild:
    def build(library: Any) -> nn.Module:
        layer = getattr(library.nn, kind)
        return _Graph(layer(8, 32), layer(32, 24))

    return other("torch_geometric", build, lambda: (torch.randn(10, 8), torch.randint(10, (2, 30))))


REST: dict[str, Wild] = {
    "LSTM": _recurrent(lambda: nn.LSTM(24, 32, 2, batch_first=True), 32),
    "LSTM, both ways": _recurrent(lambda: nn.LSTM(24, 32, batch_first=True, bidirectional=True), 64),
    "GRU": _recurrent(lambda: nn.GRU(24, 32, 2, batch_first=True), 32),
    "GCN": _geometric("GCNConv"),
    "GraphSAGE": _geometric("SAGEConv"),
    "Unet, resnet18": other(
        "segmentation_models_pytorch", lambda m: m.Unet("resnet18", encoder_weights=None, classes=4), lambda: image(64)
    ),
    "FPN, mobilenet_v2": other(
        "segmentation_models_pytorch",
        lambda m: m.FPN("mobilenet_v2", encoder_weights=None, classes=4),
        lambda: image(64),
    ),
    "DeepLabV3+, resnet18": other(
        "segmentation_models_pytorch",
        lambda m: m.DeepLabV3Plus("resnet18", encoder_weights=None, classes=4),
        lambda: image(64),
    ),
    "UNet2D": other(
        "diffusers",
        lambda m: m.UNet2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        diffusion,
    ),
    "DiT": other(
        "diffusers",
        lambda m: m.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=3,
            num_layers=2,
            sample_size=16,
            patch_size=4,
            norm_num_groups=4,
            num_embeds_ada_norm=10,
        ),
        lambda: {"hidden_states": image(16), "timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])},
    ),
    "AutoencoderKL": other(
        "diffusers",
        lambda m: m.AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        ),
        lambda: {"sample": image(16)},
    ),
    "SimpleViT": other(
        "vit_pytorch",
        lambda m: m.SimpleViT(
            image_size=32, patch_size=8, num_classes=10, dim=32, depth=2, heads=4, mlp_dim=64, dim_head=8
        ),
        lambda: image(32),
    ),
    "CvT": other(
        "vit_pytorch.cvt",
        lambda m: m.CvT(
            num_classes=10, s1_emb_dim=16, s2_emb_dim=24, s2_heads=2, s3_emb_dim=32, s3_heads=2, s3_depth=1
        ),
        lambda: image(64),
    ),
    "x-transformers decoder": other(
        "x_transformers",
        lambda m: m.TransformerWrapper(
            num_tokens=99,
            max_seq_len=32,
            attn_layers=m.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True, ff_glu=True),
        ),
        ids,
    ),
    "x-transformers encoder": other(
        "x_transformers",
        lambda m: m.TransformerWrapper(
            num_tokens=99,
            max_seq_len=32,
            attn_layers=m.Encoder(dim=32, depth=2, heads=4, attn_dim_head=8, use_rmsnorm=True),
        ),
        ids,
    ),
    "EfficientNet (efficientnet_pytorch)": other(
        "efficientnet_pytorch",
        lambda m: m.EfficientNet.from_name("efficientnet-b0", num_classes=10),
        lambda: image(64),
    ),
    "MLP-Mixer": other(
        "mlp_mixer_pytorch",
        lambda m: m.MLPMixer(image_size=32, channels=3, patch_size=8, dim=32, depth=2, num_classes=10),
        lambda: image(32),
    ),
    "Unet (denoising diffusion)": other(
        "denoising_diffusion_pytorch",
        lambda m: m.Unet(dim=16, dim_mults=(1, 2), flash_attn=False),
        lambda: (image(16), torch.tensor([3, 7])),
    ),
}
