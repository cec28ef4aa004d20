"""What tests share: tiny language models of every family, a tiny tokenizer, and a tiny activation store."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jaxtyping
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from scansion import cli, registry
from scansion.activations import ActivationStore, HarvestConfig, HarvestPlan, harvest
from scansion.activations.store import StoreIdentity
from scansion.corpus import Contexts
from scansion.lm import LanguageModel, ModelFacts, sites
from scansion.report import paper
from scansion.report.charts import Chart

VOCAB, WIDTH, LAYERS, MAX_POSITIONS = 60, 16, 3, 64
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "intermediate_size": 32,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8}
FAMILIES = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "gemma2": lambda: Gemma2Config(**_GROUPED, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(**_GROUPED, sliding_window=8),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=MAX_POSITIONS, pad_token_id=2,
        bos_token_id=1, eos_token_id=2,
    ),
    "qwen2": lambda: Qwen2Config(**{**_GROUPED, "head_dim": 8}),
    "qwen3": lambda: Qwen3Config(**_GROUPED),
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, ``w3`` to ``w59``; ids 0, 1, 2 are unknown, BOS and EOS."""
    vocab = {"[UNK]": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def make_lm(family: str = "llama", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random LM of ``family``: 3 layers, width 16, contexts of up to 64 tokens."""
    config = FAMILIES[family]()
    torch.manual_seed(0)  # transformers draws initial weights from the global generator
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    facts = ModelFacts(family, "test", family, config.model_type, LAYERS, WIDTH, MAX_POSITIONS, config)
    return LanguageModel(model, make_tokenizer(), facts)


def random_contexts(n: int, length: int = 8, seed: int = 0, shortest: int | None = None) -> Contexts:
    """Contexts of random words after a BOS, right-padded; all of full length unless ``shortest`` is given."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        size = length if shortest is None else int(torch.randint(shortest, length + 1, (), generator=generator))
        rows.append([1, *torch.randint(3, VOCAB, (size - 1,), generator=generator).tolist()])
    return Contexts.from_token_lists(rows, length, pad_id=2)


def make_plan(folder: Path, contexts: Contexts, dtype: str = "float32", **layout: int) -> HarvestPlan:
    """A harvest of ``contexts`` on :func:`make_lm` at layer 1."""
    identity = StoreIdentity(
        model="llama",
        model_revision="test",
        model_dtype="float32",
        hook_point="resid_post.1",
        d_in=WIDTH,
        context_length=contexts.length,
        n_contexts=len(contexts),
        contexts=contexts.fingerprint,
        corpus={"source": "test"},
        split="train",
        dtype=dtype,
    )
    return HarvestPlan(identity, folder, contexts, HarvestConfig(dtype=dtype, **layout))


# A minute or more each. They come first: at the end, other processes would wait for them.
LONGEST = ("test_research_loop.py", "test_training.py", "test_optimiser.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hook sites and plugins that a test adds are gone after it."""
    monkeypatch.setattr(sites, "_SITES", dict(sites._SITES))
    monkeypatch.setattr(registry, "_LOADED", dict(registry._LOADED))
    monkeypatch.setenv(registry.PLUGINS, "")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("scansion_plugin_"):
            del sys.modules[name]


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the runtime type checker, whose errors would come before the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Activations of probing texts, and contexts, are kept in folders of the session's, not among the user's."""
    folder = tmp_path_factory.mktemp("probing")
    contexts = tmp_path_factory.mktemp("contexts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scansion.corpus.kept.folder_of_contexts", lambda: contexts)
        patch.setattr("scansion.evals.reading.cache.default_folder", lambda: folder)
        yield


_draw_all = paper.write_figures


@pytest.fixture(scope="session", autouse=True)
def first_figure_only() -> Iterator[None]:
    """A report has one of its figures for papers: all thirty files take ten seconds, and most tests read none."""

    def draw_first(charts: Sequence[Chart], maps: object, arms: Sequence[str], folder: Path) -> list[Path]:
        first = [chart for chart in charts if chart.key in paper._OVERVIEW] or charts
        return _draw_all(first[:1], (), arms, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "write_figures", draw_first)
        yield


def draw_all_figures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(paper, "write_figures", _draw_all)


@pytest.fixture
def all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have all their figures for papers."""
    draw_all_figures(monkeypatch)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return make_lm()


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' language model and tokenizer as a local folder."""
    lm, folder = make_lm(), tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of 60 random words, as JSON lines."""
    words = random.Random(0)
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    texts = [" ".join(f"w{words.randint(3, VOCAB - 1)}" for _ in range(60)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> ActivationStore:
    """60 contexts of 5 to 8 tokens, in several shards."""
    plan = make_plan(tmp_path_factory.mktemp("store"), random_contexts(60, shortest=5), shard_bytes=8_000)
    return harvest(plan, lambda: lm)


@pytest.fixture
def make_store(tmp_path: Path, lm: LanguageModel) -> Callable[..., ActivationStore]:
    """``make_store(contexts, name=..., **layout)``: a store of those contexts, with shards and batches as told."""

    def make(contexts: Contexts, name: str = "store", **layout: int) -> ActivationStore:
        return harvest(make_plan(tmp_path / name, contexts, **layout), lambda: lm)

    return make


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``run("train", ...)`` -> (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["scansion", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
