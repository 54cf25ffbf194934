"""Checkpoints of scorers in their published layout, small and random, and the parts of a plain forward pass over them."""

import string

import torch
from torch.nn.functional import layer_norm
from transformers import BertTokenizer, CLIPTokenizer

LETTERS = string.ascii_lowercase
CLIP_WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]  # ends with the highest
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "of", "left"]
GRADES = (1024, 128, 64, 16, 1)  # the widths of a head after its input's


def clip_tokenizer(directory):
    CLIPTokenizer(vocab={word: n for n, word in enumerate(CLIP_WORDS)}, merges=[]).save_pretrained(directory)
    return directory


def clip_tokens(prompt, length):
    """By hand: letters, a word's last letter marked, between start and end; the end is kept when the text is cut."""
    pieces = [piece for word in prompt.lower().split() for piece in [*word[:-1], f"{word[-1]}</w>"]]
    return [CLIP_WORDS.index(p) for p in ["<|startoftext|>", *pieces[: length - 2], "<|endoftext|>"]]


def bert_tokenizer(directory):
    BertTokenizer(vocab={word: n for n, word in enumerate(BERT_WORDS)}).save_pretrained(directory)
    return directory


def bert_tokens(prompt, length):
    words = [word if word in BERT_WORDS else "[UNK]" for word in prompt.lower().split()]
    return [BERT_WORDS.index(w) for w in ["[CLS]", *words[: length - 2], "[SEP]"]]


class Weights(dict):
    """Random ones, large enough that every one of them shows in the scores."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, name, *shape, scale=None):
        spread = scale or shape[-1] ** -0.5
        self[name] = spread * torch.randn(*shape, generator=self.generator)

    def linear(self, name, out, width):
        self.add(f"{name}.weight", out, width)
        self.add(f"{name}.bias", out, scale=0.2)

    def norm(self, name, width):
        self[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=self.generator)
        self.add(f"{name}.bias", width, scale=0.2)

    def head(self, name, width):
        for n, (a, b) in zip((0, 2, 4, 6, 7), zip((width, *GRADES), GRADES, strict=False), strict=True):
            self.linear(f"{name}layers.{n}", b, a)


def open_clip_state(seed=0, eye=48, mind=32, embedding=24, patch=7, patches=16, context=16, depths=(3, 2)):
    w = Weights(seed)
    for tower, width, depth in (("visual.transformer", eye, depths[0]), ("transformer", mind, depths[1])):
        for n in range(depth):
            block = f"{tower}.resblocks.{n}"
            w.norm(f"{block}.ln_1", width)
            w.add(f"{block}.attn.in_proj_weight", 3 * width, width)
            w.add(f"{block}.attn.in_proj_bias", 3 * width, scale=0.2)
            w.linear(f"{block}.attn.out_proj", width, width)
            w.norm(f"{block}.ln_2", width)
            w.linear(f"{block}.mlp.c_fc", 2 * width, width)
            w.linear(f"{block}.mlp.c_proj", width, 2 * width)
    w.add("visual.class_embedding", eye)
    w.add("visual.conv1.weight", eye, 3, patch, patch, scale=0.1)
    w.add("visual.positional_embedding", patches + 1, eye, scale=0.5)
    w.add("visual.proj", eye, embedding)
    w.add("token_embedding.weight", len(CLIP_WORDS), mind, scale=0.5)
    w.add("positional_embedding", context, mind, scale=0.5)
    w.add("text_projection", mind, embedding)
    for name, width in (("visual.ln_pre", eye), ("visual.ln_post", eye), ("ln_final", mind)):
        w.norm(name, width)
    w["logit_scale"] = torch.tensor(2.5)
    return dict(w)


def imagereward_state(seed=0, eye=48, mind=32, patch=7, patches=16, spare=2):
    w, v, t = Weights(seed), "blip.visual_encoder", "blip.text_encoder"
    w.add(f"{v}.cls_token", 1, 1, eye)
    w.add(f"{v}.pos_embed", 1, patches + 1, eye, scale=0.5)
    w.add(f"{v}.patch_embed.proj.weight", eye, 3, patch, patch, scale=0.1)
    w.add(f"{v}.patch_embed.proj.bias", eye, scale=0.2)
    w.norm(f"{v}.norm", eye)
    for n in range(2):
        w.norm(f"{v}.blocks.{n}.norm1", eye)
        w.linear(f"{v}.blocks.{n}.attn.qkv", 3 * eye, eye)
        w.linear(f"{v}.blocks.{n}.attn.proj", eye, eye)
        w.norm(f"{v}.blocks.{n}.norm2", eye)
        w.linear(f"{v}.blocks.{n}.mlp.fc1", 2 * eye, eye)
        w.linear(f"{v}.blocks.{n}.mlp.fc2", eye, 2 * eye)
    w.add(f"{t}.embeddings.word_embeddings.weight", len(BERT_WORDS) + spare, mind, scale=0.5)
    w.add(f"{t}.embeddings.position_embeddings.weight", 40, mind, scale=0.5)
    w.norm(f"{t}.embeddings.LayerNorm", mind)
    for n in range(3):
        layer = f"{t}.encoder.layer.{n}"
        for attention, source in (("attention", mind), ("crossattention", eye)):
            w.linear(f"{layer}.{attention}.self.query", mind, mind)
            w.linear(f"{layer}.{attention}.self.key", mind, source)
            w.linear(f"{layer}.{attention}.self.value", mind, source)
            w.linear(f"{layer}.{attention}.output.dense", mind, mind)
            w.norm(f"{layer}.{attention}.output.LayerNorm", mind)
        w.linear(f"{layer}.intermediate.dense", 2 * mind, mind)
        w.linear(f"{layer}.output.dense", mind, 2 * mind)
        w.norm(f"{layer}.output.LayerNorm", mind)
    w.head("mlp.", mind)
    return dict(w)


def head_state(seed=0, width=24):
    w = Weights(seed)
    w.head("", width)
    return dict(w)


# the forward pass, one picture or prompt at a time: x is [tokens, width]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x, eps):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q, k, v, heads, causal=False):
    out = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        weight = a @ b.T / a.shape[-1] ** 0.5
        if causal:
            weight = weight.masked_fill(torch.ones_like(weight).triu(1).bool(), float("-inf"))
        out.append(weight.softmax(-1) @ c)
    return torch.cat(out, -1)


def patches(picture, weight):
    """Each patch times the convolution's matrix, rows from the top.  [3, H, W] -> [patches, width]"""
    p = weight.shape[-1]
    cut = [
        picture[:, y : y + p, x : x + p].flatten() for y in range(0, picture.shape[1], p) for x in range(0, picture.shape[2], p)
    ]
    return torch.stack(cut) @ weight.flatten(1).T


def normalised(picture):
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (picture - mean[:, None, None]) / std[:, None, None]


def head(w, prefix, x):
    for n in (0, 2, 4, 6, 7):
        x = linear(w, f"{prefix}layers.{n}", x)
    return x.squeeze(-1)
