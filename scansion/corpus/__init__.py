"""Text to contexts: token ids with their position, their document and whether they are padding."""

from scansion.corpus.config import CorpusConfig
from scansion.corpus.contexts import Contexts
from scansion.corpus.kept import kept_contexts
from scansion.corpus.sources import check_source, corpus_assets, read_documents
from scansion.corpus.tokenise import (
    CorpusSplits,
    held_out_documents,
    load_contexts,
    read_training_documents,
)
from scansion.corpus.tokenizers import start_and_padding, token_ids, tokenizer_fingerprint

__all__ = [
    "Contexts",
    "CorpusConfig",
    "CorpusSplits",
    "check_source",
    "corpus_assets",
    "held_out_documents",
    "kept_contexts",
    "load_contexts",
    "read_documents",
    "read_training_documents",
    "start_and_padding",
    "token_ids",
    "tokenizer_fingerprint",
]
