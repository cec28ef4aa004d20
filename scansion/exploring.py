"""Ordinary questions about a trained SAE: what fires on a text or at a position, in which contexts, and what it resembles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scansion.activations import ActivationStore
from scansion.attaching import attach
from scansion.corpus import token_ids
from scansion.errors import ConfigError, ModelError
from scansion.evals.base import LoadedSAE
from scansion.evals.reading.contexts import read_contexts
from scansion.evals.reading.training import require_same_source
from scansion.lm import HookPoint, LanguageModel, load_language_model, load_tokenizer, model_facts
from scansion.sae import SAE, load_sae

RankedBy = Literal["activation", "rate", "contrast"]
_FEATURES_AT_ONCE = 512
CONTEXTS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text and the features that fire on it.

    Attributes:
        tokens: the text of each token, the beginning-of-sequence token included.
        ids: their ids.
        acts: feature activations; 0 where the SAE was not applied.
        applied: where it was: not at position 0 unless it was trained there, nor past its mask's end.

    Example:
        >>> text = scansion.encode_text("runs/topk", "The state of the Union")
        >>> text.top(position=2, n=3)
    """

    tokens: list[str]
    ids: Int[Tensor, "L"]
    acts: Float[Tensor, "L d_sae"]
    applied: Bool[Tensor, "L"]

    def top(self, position: int, n: int = 5) -> list[tuple[int, float]]:
        """The features that fire on one token, strongest first, with their activations; at most ``n``.

        Raises:
            ConfigError: there is no such token, or ``n`` is not a number from 1.
        """
        whole("position", position, 0, len(self.tokens) - 1)
        whole("n", n, 1)
        values, features = self.acts[position].topk(min(n, self.acts.shape[1]))
        return [
            (feature, value) for feature, value in zip(features.tolist(), values.tolist(), strict=True) if value > 0
        ]

    def __repr__(self) -> str:
        """Sizes, and the text's beginning."""
        active = int((self.acts > 0).any(dim=0).sum())
        left_out = int((~self.applied).sum())
        start = "".join(self.tokens)[:40]
        return (
            f"EncodedText({len(self.tokens)} tokens, {left_out} of them not encoded (position 0, or past the mask), "
            f"{active} of {self.acts.shape[1]:,} features fire: {start!r}...)"
        )


@dataclass(frozen=True)
class FeatureAt:
    """What a feature does at some positions.

    Attributes:
        feature: its number.
        activation: mean over the tokens there, those where it does not fire included.
        rate: share of these tokens on which it fires, in [0, 1].
        rate_elsewhere: the same share at all other positions; NaN if there are none.

    Example:
        >>> [feature] = scansion.top_features("runs/topk", held_out, position=1, n=1)
        >>> feature.rate, feature.rate_elsewhere
    """

    feature: int
    activation: float
    rate: float
    rate_elsewhere: float


@dataclass(frozen=True)
class Excerpt:
    """Where a feature is active.

    Attributes:
        context: number of the context in the store.
        position: of the token.
        activation: of the feature.
        before, token, after: text around it, where the tokenizer could be loaded; else token ids.

    Example:
        >>> places = scansion.top_contexts("runs/topk", held_out, feature=3)
        >>> [(place.position, place.activation) for place in places]
    """

    context: int
    position: int
    activation: float
    before: str
    token: str
    after: str


@dataclass(frozen=True, eq=False)
class Matches:
    """For each feature of one SAE, the nearest of another.

    Attributes:
        features: number of the nearest feature.
        cosines: of the two decoder rows, in [-1, 1].
        mutual: whether each is the other's nearest.

    Example:
        >>> matches = scansion.match("runs/topk", "runs/bands")
        >>> matches.features[matches.mutual]
    """

    features: Int[Tensor, "F"]
    cosines: Float[Tensor, "F"]
    mutual: Bool[Tensor, "F"]

    def __repr__(self) -> str:
        """How many features have a near counterpart."""
        near = int((self.cosines >= 0.9).sum())
        return (
            f"Matches({len(self.features):,} features, {near:,} with cosine >= 0.9, {int(self.mutual.sum()):,} mutual)"
        )


@torch.no_grad()
def encode_text(
    sae: SAE | str | Path, text: str, *, lm: LanguageModel | None = None, device: str = "auto"
) -> EncodedText:
    """Run the language model and the SAE over a text.

    The text is tokenised as in training: special tokens written in it are literal, and the beginning-of-sequence token is
    put before it.

    Args:
        sae: an SAE, or the folder of a run.
        text: of at least one token, and no longer than the model's context.
        lm: the model that the SAE was trained on, already loaded; default: load it, which takes seconds.
        device: where the model runs if it is loaded here.

    Raises:
        ConfigError: the text is empty, or the SAE does not say where it belongs.
        ModelError: the text is too long for the model, or the model is not the one the SAE was trained on.

    Example:
        >>> encoded = scansion.encode_text("runs/topk", "The state of the Union is strong.")
        >>> encoded.tokens[3], encoded.top(position=3)
    """
    loaded = sae_of(sae)
    if not isinstance(text, str):
        raise ConfigError(f"text should be one text, not {type(text).__name__}")
    lm = lm or model_of(loaded, device)
    ids = text_tokens(lm, text)
    at = loaded.W_dec.device
    with attach(lm.model, loaded.to(lm.device)) as seen:
        lm.model(input_ids=ids)
    loaded.to(at)
    tokens = [str(cast(Any, lm.tokenizer).decode([token])) for token in ids[0].tolist()]
    return EncodedText(tokens, ids[0].cpu(), seen.acts[0].float().cpu(), seen.applied[0].cpu())


@torch.no_grad()
def top_features(
    sae: SAE | str | Path,
    store: ActivationStore | str | Path,
    *,
    position: int | Sequence[int],
    n: int = 10,
    by: RankedBy = "activation",
    n_contexts: int = 512,
) -> list[FeatureAt]:
    """The features that matter most at one position, or at several taken together.

    Args:
        sae: an SAE, or the folder of a run.
        store: held-out activations of the same model and hook point.
        position: one or more positions of the context, from 0.
        n: how many features.
        by: what they are ranked by: mean activation there; firing rate there; or the firing rate there minus the rate
            elsewhere.
        n_contexts: contexts to read, at most.

    Raises:
        ConfigError: the SAE was not trained at such a position, or no token was harvested there.

    Example:
        >>> scansion.top_features("runs/bands", "stores/sotu/held_out", position=range(1, 6), by="contrast", n=3)
    """
    loaded, held_out = opened(sae, store)
    whole("n", n, 1)
    places = used_positions(loaded, held_out)
    try:
        wanted = [index(place) for place in (position if isinstance(position, Iterable) else [position])]
    except TypeError as error:
        raise ConfigError(f"position={position!r}: give a whole number, or several") from error
    if not wanted:
        raise ConfigError("position names none; give one or more positions")
    for place in wanted:
        if place not in places:
            why = "; position 0 took no part in training" if place == 0 else ""
            raise ConfigError(f"position {place!r}: {held_out.place} has {_span(places)}{why}")
    here = torch.isin(places, torch.tensor(wanted))
    fired, mass = torch.zeros(2, loaded.d_sae, dtype=torch.float64), torch.zeros(loaded.d_sae, dtype=torch.float64)
    tokens = torch.zeros(2, dtype=torch.float64)
    for part in read_contexts(held_out, places, min(n_contexts, held_out.n_contexts), CONTEXTS_AT_ONCE):
        acts = part.encode(loaded)
        for side, chosen in enumerate((here, ~here)):
            fired[side] += (acts[chosen] > 0).sum(dim=(0, 1))
            tokens[side] += part.valid[chosen].sum()
        mass += acts[here].sum(dim=(0, 1))
    activation, rates = mass / tokens[0], fired / tokens[:, None]
    elsewhere = rates[1].nan_to_num()
    score = {"activation": activation, "rate": rates[0], "contrast": rates[0] - elsewhere}
    if by not in score:
        raise ConfigError(f"by={by!r}: choose one of {', '.join(score)}")
    return [
        FeatureAt(feature, float(activation[feature]), float(rates[0, feature]), float(rates[1, feature]))
        for feature in score[by].topk(min(n, loaded.d_sae)).indices.tolist()
    ]


@torch.no_grad()
def top_contexts(
    sae: SAE | str | Path,
    store: ActivationStore | str | Path,
    feature: int,
    *,
    n: int = 10,
    n_contexts: int = 512,
    around: int = 12,
) -> list[Excerpt]:
    """The places in held-out text where a feature is most active, strongest first; at most one of each context.

    Args:
        sae: an SAE, or the folder of a run.
        store: held-out activations of the same model and hook point.
        feature: its number, from 0.
        n: how many places; fewer if it fires in fewer contexts.
        n_contexts: contexts to read, at most.
        around: tokens shown on either side.

    Raises:
        ConfigError: there is no such feature.

    Example:
        >>> for place in scansion.top_contexts("runs/bands", "stores/sotu/held_out", feature=12):
        ...     print(f"{place.activation:6.1f}  {place.before}[{place.token}]{place.after}")
    """
    loaded, held_out = opened(sae, store)
    require_features(loaded, [feature])
    whole("n", n, 1)
    places = used_positions(loaded, held_out)
    strongest: list[tuple[float, int, int]] = []
    for part in read_contexts(held_out, places, min(n_contexts, held_out.n_contexts), CONTEXTS_AT_ONCE):
        values, rows = part.encode(loaded)[..., feature].max(dim=0)
        strongest += [
            (value, part.contexts.start + index, int(places[row]))
            for index, (value, row) in enumerate(zip(values.tolist(), rows.tolist(), strict=True))
            if value > 0
        ]
    strongest = sorted(strongest, key=lambda place: (-place[0], place[1]))[:n]
    decode = _decoder(held_out) if strongest else _plain
    excerpts: list[Excerpt] = []
    for activation, context, position in strongest:
        ids, valid = held_out.tokens[:, context].tolist(), held_out.valid[:, context].tolist()
        first, last = max(position - around, 0), min(position + around + 1, len(ids))
        before = [token for token, real in zip(ids[first:position], valid[first:position], strict=True) if real]
        after = [
            token for token, real in zip(ids[position + 1 : last], valid[position + 1 : last], strict=True) if real
        ]
        shown = (decode(before), decode([ids[position]]), decode(after))
        excerpts.append(Excerpt(context, position, activation, *shown))
    return excerpts


@torch.no_grad()
def match(a: SAE | str | Path, b: SAE | str | Path) -> Matches:
    """For each feature of ``a``, the feature of ``b`` whose decoder row points most nearly the same way.

    Args:
        a: an SAE, or the folder of a run.
        b: another, of activations of the same width.

    Raises:
        ConfigError: their widths differ.

    Example:
        >>> matches = scansion.match("runs/topk", "runs/bands")
        >>> float((matches.cosines > 0.9).float().mean())
    """
    of_a, of_b = sae_of(a), sae_of(b)
    if of_a.d_in != of_b.d_in:
        raise ConfigError(f"SAEs of activations {of_a.d_in} and {of_b.d_in} wide have no features in common")
    rows_a, rows_b = (
        torch.nn.functional.normalize(sae.directions.detach().float().cpu(), dim=1) for sae in (of_a, of_b)
    )
    cosines, features = _nearest(rows_a, rows_b)
    _, back = _nearest(rows_b, rows_a)
    return Matches(features, cosines, back[features] == torch.arange(len(features)))


def model_of(sae: SAE, device: str = "auto") -> LanguageModel:
    """Load the language model that an SAE was trained on.

    Raises:
        ConfigError: the SAE does not say which model that was, or the model has changed since.
        ModelError: there is no such model, or the activations were synthetic.
    """
    origin = sae.provenance
    if origin is None:
        raise ConfigError("this SAE does not say which model it belongs to; give lm")
    HookPoint.parse(origin.hook_point)  # synthetic activations have no model
    lm = load_language_model(origin.model, origin.model_id.commit, device)
    if not lm.facts.id.same_as(origin.model_id):
        raise ConfigError(
            f"{lm.facts.name} is now at {lm.facts.revision}, and the SAE was trained on {origin.model_revision}; "
            "bring that model back"
        )
    return lm


def text_tokens(lm: LanguageModel, text: str) -> Int[Tensor, "1 L"]:
    """The tokens of a text as in training, on the model's device.

    Raises:
        ConfigError: there are none.
        ModelError: there are more than the model's context holds.
    """
    [ids] = token_ids([text], lm.tokenizer)
    bos = lm.tokenizer.bos_token_id
    ids = ids if bos is None else [cast(int, bos), *ids]
    if not ids:
        raise ConfigError("the text is empty; give at least one word")
    lm.facts.check_context_length(len(ids))
    return torch.tensor([ids], device=lm.device)


def used_positions(sae: SAE, store: ActivationStore) -> Int[Tensor, "P"]:
    """The positions of a store that the SAE was trained on: all but the first, unless it says otherwise."""
    return store.used_positions(sae.provenance is None or sae.provenance.use_position_0)


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise :class:`ConfigError` unless an argument is a whole number in a range."""
    number = _as_whole(value)
    if number is None or number < low or (high is not None and number > high):
        raise ConfigError(f"{name}={value!r}: give a whole number from {low}{'' if high is None else f' to {high}'}")


def _as_whole(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else index(cast(Any, value))
    except TypeError:
        return None


def require_features(sae: SAE, features: Sequence[object]) -> None:
    """Raise :class:`ConfigError` unless the SAE has all of these features."""
    for feature in features:
        number = _as_whole(feature)
        if number is None or not 0 <= number < sae.d_sae:
            raise ConfigError(f"there is no feature {feature!r}; this SAE has {sae.d_sae}, numbered from 0")


def sae_of(sae: SAE | str | Path) -> SAE:
    """The SAE itself, loaded if a folder is given.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(sae, SAE):
        return sae
    if not isinstance(sae, str | Path):
        raise ConfigError(f"expected an SAE or the folder of a run, not {type(sae).__name__}")
    return load_sae(sae)[0]


def opened(sae: SAE | str | Path, store: ActivationStore | str | Path) -> tuple[SAE, ActivationStore]:
    """Both, which have to be of the same model and hook point."""
    loaded, held_out = sae_of(sae), store if isinstance(store, ActivationStore) else ActivationStore(store)
    if loaded.provenance is not None:
        require_same_source([LoadedSAE("the SAE", loaded, loaded.provenance)], held_out)
    return loaded, held_out


def _span(places: Tensor) -> str:
    return f"positions {int(places.min())} to {int(places.max())}"


def _nearest(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each unit row with the others, and whose it is; in parts, for dictionaries that are wide."""
    parts = [(part @ others.T).max(dim=1) for part in rows.split(_FEATURES_AT_ONCE)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _plain(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def _decoder(store: ActivationStore) -> Callable[[list[int]], str]:
    """Token ids -> their text; of synthetic activations, or where the model is not at hand, the ids themselves."""
    if not store.identity.has_lm:
        return _plain
    try:
        tokenizer = load_tokenizer(model_facts(store.identity.model, store.identity.model_id.commit))
    except ModelError:  # the activations are all that was handed on
        return _plain
    return lambda ids: str(cast(Any, tokenizer).decode(ids))
