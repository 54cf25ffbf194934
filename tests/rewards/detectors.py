"""GenEval's metadata, detections by hand, and small detectors with random weights."""

import json

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    ResNetConfig,
    SwinConfig,
)

from neighbor_grpo.rewards.geneval.detect import Detection

LINES = {
    name: json.loads(line)
    for name, line in {  # as they stand in GenEval's file
        "one": """{"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}],
        "prompt": "a photo of a computer mouse"}""",
        "two": """{"tag": "two_object", "include": [{"class": "oven", "count": 1}, {"class": "bed", "count": 1}],
        "prompt": "a photo of an oven and a bed"}""",
        "counting": """{"tag": "counting", "include": [{"class": "apple", "count": 4}],
        "exclude": [{"class": "apple", "count": 5}], "prompt": "a photo of four apples"}""",
        "colors": """{"tag": "colors", "include": [{"class": "bicycle", "count": 1, "color": "red"}],
        "prompt": "a photo of a red bicycle"}""",
        "position": """{"tag": "position", "include": [{"class": "cow", "count": 1},
        {"class": "tv remote", "count": 1, "position": ["below", 0]}], "prompt": "a photo of a tv remote below a cow"}""",
        "color_attr": """{"tag": "color_attr", "include": [{"class": "toilet", "count": 1, "color": "white"},
        {"class": "apple", "count": 1, "color": "red"}], "prompt": "a photo of a white toilet and a red apple"}""",
    }.items()
}


def seen(*rows):
    """Detections from (label, score) and, if given, a colour and a box."""
    return [Detection(label, score, *(rest[1:] or [(0, 0, 10, 10)]), *rest[:1]) for label, score, *rest in rows]


def apples(*scores):
    return seen(*(("apple", score) for score in scores))


COW, UNDER, BESIDE = (40, 10, 60, 30), (45, 50, 55, 60), (80, 12, 90, 32)


LABELS, SIZE = {0: "Dog", 1: "cat", 2: "remote"}, {"shortest_edge": 48, "longest_edge": 80}


def detr(directory):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=6,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        id2label=LABELS,
    )
    return save(DetrForObjectDetection(config), DetrImageProcessorPil, directory)


def mask2former(directory):
    stages = [f"stage{n}" for n in (1, 2, 3, 4)]
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
        id2label=LABELS,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    for parameter in model.model.transformer_module.decoder.mask_predictor.parameters():
        parameter.data.mul_(4).add_(torch.randn_like(parameter).mul(0.3))  # masks that are neither full nor empty
    return save(model, Mask2FormerImageProcessorPil, directory, size_divisor=32)


def save(model, processor, directory, **options):
    model.save_pretrained(directory)
    processor(size=SIZE, **options).save_pretrained(directory)
    return str(directory)
