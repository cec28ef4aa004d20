"""The public names are there, are loaded only when used, and are the same for a type checker as for Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scansion
from scansion.sae import build_sae


def declared() -> dict[str, str]:
    """Name -> module, as a type checker reads the file."""
    tree = ast.parse(Path(scansion.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def test_a_type_checker_sees_what_python_sees() -> None:
    assert declared() == scansion._HOME_OF


@pytest.mark.parametrize("name", sorted(scansion._HOME_OF))
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(scansion, name) is getattr(scansion, name)
    assert getattr(scansion, name).__doc__
    assert name in dir(scansion)


def test_another_name_is_refused_like_any_missing_attribute() -> None:
    with pytest.raises(AttributeError, match=r"scansion has no 'Sae'; did you mean SAE\?"):
        scansion.Sae  # noqa: B018
    assert not hasattr(scansion, "__wrapped__")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import scansion", "torch transformers sklearn matplotlib datasets pydantic"),
        ("from scansion.cli import app; app.meta(['--help'])", "torch transformers numpy scipy"),
        ("from scansion.cli import app; app.meta(['study', '--help'])", "torch transformers numpy scipy"),
        (
            "from scansion.cli import app; app.meta(['train', '--help'])",
            "sklearn matplotlib datasets pandas scipy transformers",
        ),
        (
            "from scansion.cli import app; app.meta(['eval', '--help'])",
            "sklearn matplotlib datasets pandas transformers",
        ),
        (
            "import torch; from scansion.sae import TopKConfig, build_sae; from scansion.training import TrainingConfig; "
            "from scansion.training.optimiser import Optimiser; "
            "sae = build_sae(TopKConfig(d_sae=8, k=2), 4, 4, torch.Generator()); "
            "optimiser = Optimiser(sae, TrainingConfig(), 9); "
            "[setattr(weight, 'grad', torch.ones_like(weight)) for weight in sae.parameters()]; optimiser.step(1, 0.1)",
            "torch._dynamo sympy transformers sklearn",
        ),
    ],
)
def test_only_what_is_needed_is_loaded(code: str, heavy: str) -> None:
    """Importing torch and transformers takes seconds, which nobody who asks for help should wait."""
    code = (
        f"import atexit, sys; atexit.register(lambda: print('loaded', set({heavy.split()}) & set(sys.modules))); {code}"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "loaded set()"


def test_what_is_printed_says_sizes(store: scansion.ActivationStore) -> None:
    """Not an address, and not thousands of numbers."""
    contexts = scansion.Contexts.from_token_lists([[1, 5, 9], [1, 7]], 3, pad_id=2)
    sae = build_sae(
        scansion.TopKConfig(d_sae=2048, k=2, mask=scansion.BandMaskConfig(count=2)), 16, 8, torch.Generator()
    )
    assert repr(contexts) == "Contexts(2 x 3 positions, 5 tokens of 2 documents)"
    assert repr(sae) == "TopKSAE(2,048 features of 16 dimensions, bands mask over 8 positions)"
    assert repr(store) == (
        f"ActivationStore({store.folder}: 60 contexts x 8 positions x 16, float32, resid_post.1 of llama)"
    )
    assert repr(store.contexts(0, 4)) == "PositionedBatch(8 positions (0 to 7) x 4 tokens x 16, float32 on cpu)"
