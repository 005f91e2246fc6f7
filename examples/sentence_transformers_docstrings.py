"""sentence-transformers' training step, with our loss: which docstring belongs to which function of Python's library?

The anchors are the words of a function's name ("tar file makedir"), the positives the first sentence of its docstring
("Create a directory called targetpath."): real pairs that need no download, about 2400. The model is a static
embedding of words, made here. Accuracy@1: of 300 unseen functions' docstrings, the nearest to a name is its own.

    python examples/sentence_transformers_docstrings.py  # a quarter of a minute on one core

The loop is written out; SentenceTransformerTrainer, which needs `datasets` and `accelerate`, takes the same loss.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import random
import re
import warnings

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

# was: from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from ssl_fast.compat.sentence_transformers import MultipleNegativesRankingLoss

MODULES = """
argparse array ast asyncio base64 bisect calendar cmath collections concurrent.futures configparser contextlib copy
csv ctypes datetime decimal difflib dis email.message email.utils enum fnmatch fractions ftplib functools gettext glob
gzip hashlib heapq hmac html http.client imaplib inspect itertools json locale logging math mimetypes multiprocessing
os os.path pathlib pickle platform pprint queue random re select shelve shutil signal smtplib socket sqlite3 ssl
statistics string struct subprocess tarfile tempfile textwrap threading tokenize trace traceback types unittest
urllib.parse urllib.request warnings weakref xml.dom.minidom zipfile
"""


def docstrings() -> list[tuple[str, str]]:
    """(words of the name, first sentence) of the functions and methods of these modules, each sentence once."""
    pairs = {}
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        owners = [(module_name.split(".")[-1], module)]
        owners += [(name, x) for name, x in inspect.getmembers(module, inspect.isclass) if x.__module__ == module_name]
        for owner, holder in owners:
            for name, function in inspect.getmembers(holder, callable):
                sentence = " ".join((inspect.getdoc(function) or "").strip().split("\n\n")[0].split())
                if not name.startswith("_") and len(sentence.split()) > 3 and not sentence.startswith(f"{name}("):
                    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", f"{owner} {name}")
                    pairs[sentence] = " ".join(words).lower()
    return [(words, sentence) for sentence, words in sorted(pairs.items())]


def static_model(sentences: list[str], dim: int) -> SentenceTransformer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=dim)], device="cpu")


def accuracy(model: SentenceTransformer, pairs: list[tuple[str, str]]) -> float:
    names, sentences = (model.encode(list(side), convert_to_tensor=True) for side in zip(*pairs, strict=True))
    found = model.similarity(names, sentences).argmax(1).cpu()
    return (found == torch.arange(len(pairs))).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore", DeprecationWarning)  # of the standard library's own modules

    pairs = docstrings()
    random.Random(options.seed).shuffle(pairs)
    unseen, train = pairs[:300], pairs[300:]
    model = static_model([text for pair in train for text in pair], dim=128)
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    print(f"{len(train)} pairs, for example {train[0]}")
    print(f"accuracy@1 before {accuracy(model, unseen):.3f}")
    for step in range(1, options.steps + 1):
        columns = zip(*random.sample(train, options.batch), strict=True)
        value = loss([model.preprocess(list(column)) for column in columns], None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0:
            print(f"step {step:4}  loss {value.item():.3f}", flush=True)
    print(f"accuracy@1 after  {accuracy(model, unseen):.3f}")


if __name__ == "__main__":
    main()
