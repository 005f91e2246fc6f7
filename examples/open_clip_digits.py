"""open_clip's training step, with our loss: a small CLIP of scikit-learn's digits and their captions.

The model and the tokenizer are open_clip's own, of a small size; nothing is downloaded. Each batch has one image of
each class, so that no other caption of it is also right. Zero-shot accuracy: of the captions of all ten digits, the
nearest to a test image is its own.

    python examples/open_clip_digits.py  # half a minute on one core
"""

from __future__ import annotations

import argparse

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_fast.compat.open_clip import ClipLoss  # was: from open_clip import ClipLoss
from ssl_fast.train import data

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["a photo of the number {}.", "a handwritten {}.", "a scan of the digit {}."]


def small_clip() -> nn.Module:
    images = open_clip.CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=2, image_size=8)
    texts = open_clip.CLIPTextCfg(context_length=16, vocab_size=49408, width=64, heads=4, layers=1)
    return open_clip.CLIP(embed_dim=32, vision_cfg=images, text_cfg=texts)


def pixels(images: Tensor) -> Tensor:
    """(N, 1, 8, 8) uint8 -> (N, 3, 8, 8) around 0."""
    return (images.float() / 128 - 1).expand(-1, 3, -1, -1)


@torch.no_grad()
def zero_shot(model: nn.Module, tokens: Tensor, images: Tensor, labels: Tensor) -> float:
    """tokens: (templates, 10, context)."""
    model.eval()
    texts = model.encode_text(tokens.flatten(0, 1), normalize=True).view(*tokens.shape[:2], -1).mean(0)
    found = (model.encode_image(images, normalize=True) @ F.normalize(texts, dim=-1).T).argmax(1)
    model.train()
    return (found == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = data.load("digits")
    train, test = pixels(digits.train_images), pixels(digits.test_images)
    of_class = [torch.nonzero(digits.train_labels == name).flatten() for name in range(10)]
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    tokens = torch.stack([tokenizer([template.format(name) for name in NAMES]) for template in TEMPLATES])

    model, loss = small_clip(), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    print(f"zero-shot accuracy before {zero_shot(model, tokens, test, digits.test_labels):.3f}")
    for step in range(1, options.steps + 1):
        images = train[torch.stack([rows[torch.randint(len(rows), ())] for rows in of_class])]
        texts = tokens[torch.randint(len(TEMPLATES), (10,)), torch.arange(10)]
        image_features, text_features, logit_scale = model(images, texts)
        value = loss(image_features, text_features, logit_scale)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # at most 100, as open_clip's main.py does
        if step == 1 or step % 50 == 0:
            print(f"step {step:4}  loss {value.item():.3f}  scale {logit_scale.item():.2f}", flush=True)
    print(f"zero-shot accuracy after  {zero_shot(model, tokens, test, digits.test_labels):.3f}")


if __name__ == "__main__":
    main()
