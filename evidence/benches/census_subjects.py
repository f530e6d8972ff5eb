"""Architectures of the census: how each is built (random weights, a small configuration) and what it takes.

Nothing is imported before it is built; a package that is not there is said in its row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Wild:
    """One architecture. package: where it comes from. make: the network, and an example: an input, a tuple or a mapping."""

    package: str
    make: Callable[[], Made]


def _image(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def _ids(length: int = 12, words: int = 99) -> Tensor:
    return torch.randint(3, words, (2, length))


def _timm(name: str, size: int = 64, **config: Any) -> Wild:
    def make() -> Made:
        timm = importlib.import_module("timm")
        net: nn.Module = timm.create_model(name, num_classes=10, **config)
        return net, _image(size)

    return Wild("timm", make)


_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_WORDS: dict[str, Any] = {
    **_SMALL,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _hf(
    model: str, inputs: Callable[[], Mapping[str, Any]], *, config: str = "", experts: str = "", **values: Any
) -> Wild:
    """A model of transformers, from a configuration of the same name. experts: how they are computed, if not as usual."""

    def make() -> Made:
        hub = importlib.import_module("transformers")
        kind = getattr(hub, model)
        made = (getattr(hub, config) if config else kind.config_class)(**values)
        net = kind(made)
        if experts:
            net.set_experts_implementation(experts)
        return net, dict(inputs())

    return Wild("transformers", make)


def _text() -> Mapping[str, Any]:
    return {"input_ids": _ids()}


def _pairs() -> Mapping[str, Any]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(8)}


def _pixels(size: int = 32) -> Callable[[], Mapping[str, Any]]:
    return lambda: {"pixel_values": _image(size)}


def _sound() -> Mapping[str, Any]:
    return {"input_values": torch.randn(2, 400)}


def _other(package: str, build: Callable[[Any], nn.Module], inputs: Callable[[], Any]) -> Wild:
    """A network of another package: built from its module."""
    return Wild(package, lambda: (build(importlib.import_module(package)), inputs()))


def _diffusion() -> Mapping[str, Any]:
    return {"sample": _image(16), "timestep": torch.tensor([3, 7])}


_CONVOLUTIONS: dict[str, Wild] = {
    name: _timm(name)
    for name in (
        "resnet18",
        "resnext26ts",
        "seresnext26t_32x4d",
        "ecaresnet26t",
        "skresnet18",
        "res2net50_26w_4s",
        "regnety_002",
        "densenet121",
        "dla34",
        "dpn68",
        "hrnet_w18_small",
        "cspresnet50",
        "vgg11_bn",
        "inception_next_atto",
        "mobilenetv2_050",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_050",
        "efficientnet_b0",
        "ghostnetv2_100",
        "repvgg_a0",
        "mobileone_s0",
        "repvit_m0_9",
        "starnet_s1",
        "hgnetv2_b0",
        "ese_vovnet19b_dw",
        "convnext_atto",
        "convnextv2_atto",
        "convmixer_768_32",
        "mambaout_femto",
        "test_nfnet",
        "fastvit_t8",
        "poolformer_s12",
    )
}
_ATTENTION: dict[str, Wild] = {
    "vit_tiny": _timm("vit_tiny_patch16_224", img_size=64, depth=3),
    "vit_reg4_dinov2": _timm("vit_small_patch14_reg4_dinov2", 56, img_size=56, depth=2),
    "deit3_small": _timm("deit3_small_patch16_224", img_size=64, depth=2),
    "beit_base": _timm("beit_base_patch16_224", img_size=64, depth=2, embed_dim=96, num_heads=6),
    "eva02_tiny": _timm("eva02_tiny_patch14_224", 56, img_size=56, depth=2),
    "cait_xxs24": _timm("cait_xxs24_224", img_size=64, depth=2),
    "xcit_nano": _timm("xcit_nano_12_p16_224", img_size=64, depth=2),
    "swin_tiny": _timm("swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    "swinv2_tiny": _timm("swinv2_tiny_window8_256", img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    "test_maxvit": _timm("test_maxvit", 64, img_size=64),
    "test_coatnet": _timm("test_coatnet", 64, img_size=64),
    "levit_128s": _timm("levit_128s", 224),
    "efficientformer_l1": _timm("efficientformer_l1", 224),
    "efficientvit_b0": _timm("efficientvit_b0"),
    "mobilevit_xxs": _timm("mobilevit_xxs"),
    "edgenext_xx_small": _timm("edgenext_xx_small"),
    "tiny_vit_5m": _timm("tiny_vit_5m_224", 224),
    "pvt_v2_b0": _timm("pvt_v2_b0"),
    "twins_svt_small": _timm("twins_svt_small", depths=(1, 1, 1, 1)),
    "focalnet_tiny": _timm("focalnet_tiny_srf"),
    "davit_tiny": _timm("davit_tiny", 64, depths=(1, 1, 1, 1)),
    "caformer_s18": _timm("caformer_s18"),
    "mixer_s32": _timm("mixer_s32_224", img_size=64),
    "gmlp_s16": _timm("gmlp_s16_224", img_size=64),
    "sequencer2d_s": _timm("sequencer2d_s", 224, layers=(1, 1, 1, 1)),
}
_TEXT: dict[str, Wild] = {
    "Qwen3": _hf("Qwen3ForCausalLM", _text, **_WORDS, num_key_value_heads=2, head_dim=8),
    "Qwen2": _hf("Qwen2ForCausalLM", _text, **_WORDS, num_key_value_heads=2),
    "Llama": _hf("LlamaForCausalLM", _text, **_WORDS, num_key_value_heads=2),
    "Gemma3": _hf("Gemma3ForCausalLM", _text, config="Gemma3TextConfig", **_WORDS, num_key_value_heads=2, head_dim=8),
    "Mistral": _hf("MistralForCausalLM", _text, **_WORDS, num_key_value_heads=2),
    "Phi3": _hf("Phi3ForCausalLM", _text, **_WORDS, num_key_value_heads=2),
    "SmolLM3": _hf("SmolLM3ForCausalLM", _text, **_WORDS, num_key_value_heads=2),
    "Olmo2": _hf("Olmo2ForCausalLM", _text, **_WORDS),
    "GPT-OSS": _hf(
        "GptOssForCausalLM",
        _text,
        **_WORDS,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        experts="batched_mm",  # grouped_mm knows no float64
    ),
    "Mixtral": _hf(
        "MixtralForCausalLM", _text, **_WORDS, num_key_value_heads=2, num_local_experts=4, experts="batched_mm"
    ),
    "GPT-NeoX": _hf("GPTNeoXForCausalLM", _text, **_WORDS),
    "GPT-2": _hf("GPT2LMHeadModel", _text, vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "OPT": _hf(
        "OPTForCausalLM",
        _text,
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        ffn_dim=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "BLOOM": _hf("BloomForCausalLM", _text, vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    "BERT": _hf("BertForSequenceClassification", _text, **_WORDS),
    "RoBERTa": _hf("RobertaForSequenceClassification", _text, **_WORDS),
    "DistilBERT": _hf(
        "DistilBertForSequenceClassification",
        _text,
        vocab_size=99,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
    ),
    "ALBERT": _hf("AlbertForSequenceClassification", _text, **_WORDS, embedding_size=16),
    "ELECTRA": _hf("ElectraForSequenceClassification", _text, **_WORDS, embedding_size=16),
    "DeBERTa-v2": _hf("DebertaV2ForSequenceClassification", _text, **_WORDS),
    "ModernBERT": _hf("ModernBertForSequenceClassification", _text, **_WORDS, cls_token_id=1, sep_token_id=2),
    "T5": _hf(
        "T5ForConditionalGeneration",
        _pairs,
        vocab_size=99,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "BART": _hf(
        "BartForConditionalGeneration",
        _pairs,
        vocab_size=99,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
    ),
    "Whisper": _hf(
        "WhisperForConditionalGeneration",
        lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": _ids(6)},
        vocab_size=99,
        d_model=32,
        num_mel_bins=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "Mamba": _hf("MambaForCausalLM", _text, vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=8),
    "Mamba2": _hf(
        "Mamba2ForCausalLM",
        _text,
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
}
_SENSES: dict[str, Wild] = {
    "ViT (transformers)": _hf("ViTForImageClassification", _pixels(), **_SMALL, image_size=32, patch_size=8),
    "DINOv2": _hf(
        "Dinov2ForImageClassification",
        _pixels(28),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    ),
    "SigLIP vision": _hf("SiglipVisionModel", _pixels(), **_SMALL, image_size=32, patch_size=8),
    "CLIP": _hf(
        "CLIPModel",
        lambda: {"input_ids": _ids(), "pixel_values": _image(32)},
        text_config={**_WORDS, "projection_dim": 16},
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    ),
    "SegFormer": _hf(
        "SegformerForSemanticSegmentation",
        _pixels(64),
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
    ),
    "wav2vec2": _hf(
        "Wav2Vec2ForSequenceClassification",
        _sound,
        **_SMALL,
        vocab_size=32,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
    ),
    "AST": _hf(
        "ASTForAudioClassification",
        lambda: {"input_values": torch.randn(2, 32, 16)},
        **_SMALL,
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
    ),
    "PatchTST": _hf(
        "PatchTSTForPrediction",
        lambda: {"past_values": torch.randn(2, 32, 3)},
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=64,
        prediction_length=4,
    ),
}


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

    return _other("torch_geometric", build, lambda: (torch.randn(10, 8), torch.randint(10, (2, 30))))


_REST: dict[str, Wild] = {
    "LSTM": _recurrent(lambda: nn.LSTM(24, 32, 2, batch_first=True), 32),
    "LSTM, both ways": _recurrent(lambda: nn.LSTM(24, 32, batch_first=True, bidirectional=True), 64),
    "GRU": _recurrent(lambda: nn.GRU(24, 32, 2, batch_first=True), 32),
    "GCN": _geometric("GCNConv"),
    "GraphSAGE": _geometric("SAGEConv"),
    "Unet, resnet18": _other(
        "segmentation_models_pytorch", lambda m: m.Unet("resnet18", encoder_weights=None, classes=4), lambda: _image(64)
    ),
    "FPN, mobilenet_v2": _other(
        "segmentation_models_pytorch",
        lambda m: m.FPN("mobilenet_v2", encoder_weights=None, classes=4),
        lambda: _image(64),
    ),
    "DeepLabV3+, resnet18": _other(
        "segmentation_models_pytorch",
        lambda m: m.DeepLabV3Plus("resnet18", encoder_weights=None, classes=4),
        lambda: _image(64),
    ),
    "UNet2D": _other(
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
        _diffusion,
    ),
    "DiT": _other(
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
        lambda: {"hidden_states": _image(16), "timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])},
    ),
    "AutoencoderKL": _other(
        "diffusers",
        lambda m: m.AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        ),
        lambda: {"sample": _image(16)},
    ),
    "SimpleViT": _other(
        "vit_pytorch",
        lambda m: m.SimpleViT(
            image_size=32, patch_size=8, num_classes=10, dim=32, depth=2, heads=4, mlp_dim=64, dim_head=8
        ),
        lambda: _image(32),
    ),
    "CvT": _other(
        "vit_pytorch.cvt",
        lambda m: m.CvT(
            num_classes=10, s1_emb_dim=16, s2_emb_dim=24, s2_heads=2, s3_emb_dim=32, s3_heads=2, s3_depth=1
        ),
        lambda: _image(64),
    ),
    "x-transformers decoder": _other(
        "x_transformers",
        lambda m: m.TransformerWrapper(
            num_tokens=99,
            max_seq_len=32,
            attn_layers=m.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True, ff_glu=True),
        ),
        _ids,
    ),
    "x-transformers encoder": _other(
        "x_transformers",
        lambda m: m.TransformerWrapper(
            num_tokens=99,
            max_seq_len=32,
            attn_layers=m.Encoder(dim=32, depth=2, heads=4, attn_dim_head=8, use_rmsnorm=True),
        ),
        _ids,
    ),
    "EfficientNet (efficientnet_pytorch)": _other(
        "efficientnet_pytorch",
        lambda m: m.EfficientNet.from_name("efficientnet-b0", num_classes=10),
        lambda: _image(64),
    ),
    "MLP-Mixer": _other(
        "mlp_mixer_pytorch",
        lambda m: m.MLPMixer(image_size=32, channels=3, patch_size=8, dim=32, depth=2, num_classes=10),
        lambda: _image(32),
    ),
    "Unet (denoising diffusion)": _other(
        "denoising_diffusion_pytorch",
        lambda m: m.Unet(dim=16, dim_mults=(1, 2), flash_attn=False),
        lambda: (_image(16), torch.tensor([3, 7])),
    ),
}
SUBJECTS: dict[str, Wild] = {**_TEXT, **_SENSES, **_REST, **_ATTENTION, **_CONVOLUTIONS}
