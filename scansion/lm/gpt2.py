"""A small GPT-2 with learned absolute positions, trained on the bundled text: position is in its residual stream."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from scansion.assets import cache_dir
from scansion.corpus import Contexts, CorpusConfig, load_contexts, read_training_documents, token_ids
from scansion.device import multiplies_bfloat16
from scansion.errors import DamagedError, ModelError
from scansion.files import atomic_file, atomic_folder, fingerprint
from scansion.lm.gguf import RECORD, damage_in
from scansion.lm.identity import BUNDLED_GPT2, hash_of_files
from scansion.locks import only_writer
from scansion.progress import progress, say
from scansion.records import read_object, write_json
from scansion.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:
    import transformers

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
LAST_RATE = 0.1
"""The cosine schedule ends at this share of the peak rate."""
END_OF_TEXT = "<|endoftext|>"
EVALUATION_BATCH = 64


class GPT2Recipe(BaseModel):
    """What the model is and how it is trained; equal recipes give equal weights on one kind of processor with as many threads.

    Windows of a document start anywhere, and each begins with the BOS token at position 0, as the contexts of a store do.
    Held-out documents are those that :class:`~scansion.corpus.CorpusConfig` holds out by default: an SAE is then evaluated on
    text that the language model has not seen either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(default="sotu", description="Text, as in a corpus.")
    vocabulary: int = Field(default=4096, gt=257, description="Tokens of the byte-level BPE, trained on the same text.")
    n_layers: int = Field(default=4, gt=0, description="Blocks.")
    d_model: int = Field(default=256, gt=0, description="Width of the residual stream.")
    n_heads: int = Field(default=4, gt=0, description="Attention heads per block.")
    context_length: int = Field(default=128, ge=2, description="Positions, each with a learned embedding.")
    steps: int = Field(default=4000, gt=0, description="Steps of AdamW.")
    batch_contexts: int = Field(default=16, gt=0, description="Windows per step.")
    lr: float = Field(default=2e-3, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(default=100, ge=0, description="Steps of linear warm-up; a cosine follows.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the weights and of the windows.")

    def corpus(self) -> CorpusConfig:
        """The text, and which documents are held out."""
        return CorpusConfig(source=self.source, context_length=self.context_length, held_out_tokens=2**40)

    def lr_at(self, step: int) -> float:
        """Learning rate of ``step`` (from 0): linear warm-up, then a cosine down to a tenth."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)))


def gpt2_folder() -> Path:
    """Where the trained model is kept, as transformers writes it; the name changes with the default recipe."""
    return cache_dir() / "models" / f"{BUNDLED_GPT2}-{fingerprint(GPT2Recipe().model_dump())[:8]}"


def trained_gpt2_folder() -> Path:
    """:func:`gpt2_folder`, checked.

    Raises:
        ModelError: the model has not been trained here, or its files are damaged.
    """
    folder = gpt2_folder()
    command = "run `scansion assets train-gpt2` (about an hour on one core; resumes if it is stopped)"
    if not folder.is_dir():
        raise ModelError(
            f"the language model {BUNDLED_GPT2} is trained on this machine and has not been yet; {command}"
        )
    if damage := damage_in(folder):
        raise ModelError(f"{damage}; delete {folder} and {command}")
    return folder


def gpt2_record(folder: Path) -> dict[str, Any]:
    """The recipe a model was trained by, and its perplexity on held-out text."""
    return {name: value for name, value in read_object(folder / RECORD).items() if name != "files"}


def train_gpt2(
    recipe: GPT2Recipe | None = None, folder: Path | None = None, checkpoint_seconds: float = 60.0
) -> dict[str, Any]:
    """Train the model, measure its perplexity, and keep it; what was interrupted is resumed, and what is there is left.

    Args:
        recipe: default :class:`GPT2Recipe`.
        folder: default :func:`gpt2_folder`.
        checkpoint_seconds: seconds between checkpoints, which are kept next to the folder until it is complete.

    Returns:
        :func:`gpt2_record`.

    Raises:
        AssetError: the text was not fetched.
        CorpusError: there is too little text.
    """
    recipe, folder = recipe or GPT2Recipe(), folder or gpt2_folder()
    if not folder.is_dir():
        # A folder of its own: the lock of the folder of models would stop others from converting theirs for an hour.
        workplace = folder.with_name(f"{folder.name}-training")
        workplace.mkdir(parents=True, exist_ok=True)
        with only_writer(workplace, "training a language model", wait=True):
            if not folder.is_dir():  # another process may have finished while we waited
                _train(recipe, folder, workplace / "checkpoint.safetensors", checkpoint_seconds)
        shutil.rmtree(workplace, ignore_errors=True)
    return gpt2_record(folder)


def _train(recipe: GPT2Recipe, folder: Path, checkpoint: Path, checkpoint_seconds: float) -> None:
    documents = list(read_training_documents(recipe.corpus()))
    tokenizer = _train_tokenizer(documents, recipe)
    windows = _Windows(token_ids(documents, tokenizer), _bos(tokenizer), recipe)
    model = _build(recipe, tokenizer)
    optimiser = torch.optim.AdamW(_groups(model), betas=BETAS, fused=True)
    of = fingerprint(recipe.model_dump())
    start, seconds = _resume(checkpoint, of, model, optimiser)
    if start:
        say(f"resuming at step {start:,} of {recipe.steps:,}")
    began = saved = time.monotonic()
    with progress(f"train {BUNDLED_GPT2}", recipe.steps, "steps", start) as advance:
        for step in range(start, recipe.steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_at(step)
            loss = _next_token_loss(model, windows.batch(step))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimiser.step()
            advance(1)
            if (step + 1) % 100 == 0:
                say(f"step {step + 1:,}: {float(loss.detach()):.3f} nats per token")
            if time.monotonic() - saved >= checkpoint_seconds:
                saved = time.monotonic()
                _save_checkpoint(checkpoint, of, step + 1, seconds + saved - began, model, optimiser)
    seconds += time.monotonic() - began
    record: dict[str, Any] = {
        "model": BUNDLED_GPT2,
        "recipe": recipe.model_dump(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": recipe.steps * recipe.batch_contexts * recipe.context_length,
        "text_tokens": windows.n_tokens,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if multiplies_bfloat16() else "float32",
        "seconds": round(seconds),
        "held_out": _evaluate(model, tokenizer, recipe, windows.unigram_counts(len(tokenizer))),
    }
    model.eval()
    with atomic_folder(folder) as temporary:
        cast(Any, model).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = {path.name: hash_of_files([path]) for path in sorted(temporary.iterdir())}
        write_json(temporary / RECORD, record | {"files": files})


def _train_tokenizer(documents: list[str], recipe: GPT2Recipe) -> transformers.PreTrainedTokenizerBase:
    import transformers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def _bos(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    return cast(int, tokenizer.bos_token_id)


def _build(recipe: GPT2Recipe, tokenizer: transformers.PreTrainedTokenizerBase) -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=recipe.context_length, n_embd=recipe.d_model, n_layer=recipe.n_layers,
        n_head=recipe.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=_bos(tokenizer),
        eos_token_id=_bos(tokenizer),
    )  # fmt: skip
    # transformers draws initial weights from the global generator, whose state is the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return transformers.GPT2LMHeadModel(config).train()


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay; embeddings of positions, norms and biases do not."""
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "wpe" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "wpe" in name]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]


class _Windows:
    """Windows of training documents, drawn at each step from a generator that the step alone decides."""

    def __init__(self, documents: list[list[int]], bos: int, recipe: GPT2Recipe) -> None:
        self._recipe = recipe
        self._bos = bos
        self._width = recipe.context_length - 1  # and BOS
        usable = [torch.tensor(tokens, dtype=torch.int32) for tokens in documents if len(tokens) >= self._width]
        if not usable:
            raise ModelError(
                f"no training document has {self._width} tokens; use longer documents or a shorter context"
            )
        self._tokens = torch.cat(usable)
        ends = torch.tensor([len(tokens) for tokens in usable]).cumsum(0)
        # Starts from which a whole window is of one document.
        fits = torch.ones(len(self._tokens), dtype=torch.bool)
        for end in ends.tolist():
            fits[end - self._width + 1 : end] = False
        self._starts = fits.nonzero()[:, 0]
        self.n_tokens = len(self._tokens)

    def batch(self, step: int) -> Tensor:
        """Token ids of one step, shape [contexts, length]."""
        generator = torch.Generator().manual_seed((self._recipe.seed << 32) + step)
        drawn = torch.randint(len(self._starts), (self._recipe.batch_contexts,), generator=generator)
        rows = self._starts[drawn, None] + torch.arange(self._width)
        return nn.functional.pad(self._tokens[rows].long(), (1, 0), value=self._bos)

    def unigram_counts(self, vocabulary: int) -> Tensor:
        """How often each token occurs."""
        return torch.bincount(self._tokens, minlength=vocabulary)


@contextmanager
def _autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
        yield


def _next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    with _autocast():
        logits = model(input_ids=tokens, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def _evaluate(
    model: nn.Module, tokenizer: transformers.PreTrainedTokenizerBase, recipe: GPT2Recipe, counts: Tensor
) -> dict[str, Any]:
    """Perplexity over all tokens of the held-out documents in contexts as a store has them, in float32."""
    contexts = load_contexts(recipe.corpus(), tokenizer).held_out
    loss = torch.zeros(recipe.context_length - 1, dtype=torch.float64)
    counted = torch.zeros(recipe.context_length - 1, dtype=torch.float64)
    for first in range(0, len(contexts), EVALUATION_BATCH):
        some = contexts[first : first + EVALUATION_BATCH]
        tokens, valid = some.tokens.long(), some.valid[:, 1:]
        logits = model(input_ids=tokens, attention_mask=some.valid.long(), use_cache=False).logits[:, :-1]
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        loss += (losses * valid).sum(dim=0).double()
        counted += valid.sum(dim=0)
    total, n = float(loss.sum()), float(counted.sum())
    return {
        "documents": int(contexts.doc_ids[contexts.valid].unique().numel()),
        "tokens": int(n),
        "perplexity": round(math.exp(total / n), 3),
        "nats_per_token": round(total / n, 4),
        "bits_per_byte": round(total / math.log(2) / _n_bytes(contexts, tokenizer), 4),
        "unigram_perplexity": round(_unigram_perplexity(contexts, counts), 3),
        "nats_by_position": [round(x, 3) for x in (loss / counted).tolist()],
    }


def _n_bytes(contexts: Contexts, tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Bytes of the predicted text: a byte-level token is written with one character per byte."""
    lengths = torch.tensor(
        [len(text) for text in cast("list[str]", tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))]
    )
    return int(lengths[contexts.tokens[:, 1:][contexts.valid[:, 1:]].long()].sum())


def _unigram_perplexity(contexts: Contexts, counts: Tensor) -> float:
    """Of the frequencies of tokens in the training text, one added to each count."""
    log_shares = ((counts + 1).double() / (counts + 1).sum()).log()
    return math.exp(-float(log_shares[contexts.tokens[:, 1:][contexts.valid[:, 1:]].long()].mean()))


def _save_checkpoint(
    path: Path, of: str, step: int, seconds: float, model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    tensors["step"] = torch.tensor(step)
    tensors["seconds"] = torch.tensor(seconds)
    with atomic_file(path) as temporary:
        save_tensors(temporary, tensors, of)


def _resume(path: Path, of: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Load the checkpoint of an interrupted training; returns its step and seconds, or 0 and 0 if there is none that fits."""
    if not path.exists():
        return 0, 0.0
    try:
        tensors = load_tensors(path, of=of)
    except DamagedError as error:
        say(f"{error}; training starts again")
        return 0, 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    return int(tensors["step"]), float(tensors["seconds"])
