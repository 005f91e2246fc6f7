"""The small models of the tests beside sentence-transformers, made here: none is downloaded."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "the", "cat", "dog", "sat", "ran", "on", "mat", "road", "under", "sun"]


def tokenizer():
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words


def bert(folder: str) -> SentenceTransformer:
    """A SentenceTransformer of one small BERT layer without dropout, whose files are saved in folder."""
    torch.manual_seed(0)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes, **dropouts)).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(folder), Pooling(8)], device="cpu").train()


def static():
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_dim=8)], device="cpu")


def features(model):
    columns = ["the cat sat", "dog ran", "sun"], ["cat on mat", "the dog road", "under sun"], ["mat", "cat", "the road"]
    return [model.preprocess(list(column)) for column in columns]
