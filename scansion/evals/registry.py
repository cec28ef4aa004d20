"""What an evaluation is: a config, a run, and figures, each named in one place; and the registry of all evaluations."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from scansion.activations import ActivationStore
from scansion.corpus import CorpusConfig
from scansion.errors import ConfigError, describe
from scansion.evals.base import EvalResult, LoadedSAE
from scansion.evals.statistics import Estimate
from scansion.lm import LanguageModel
from scansion.registry import Registry
from scansion.sae import SAEConfig, window_of

LoadLM = Callable[[], LanguageModel]
Value = Estimate | float | None


class EvaluationConfig(BaseModel):
    """Base of every evaluation's settings.

    Attributes:
        evaluation: its name in plans, flags and file names. Not a setting: it is the key that settings stand under.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    evaluation: ClassVar[str]


Config = TypeVar("Config", bound=EvaluationConfig)
Result = TypeVar("Result", bound=EvalResult)


@dataclass(frozen=True)
class Figure:
    """One number that an evaluation measures: its name, how it is shown, and where a result holds it.

    A name with ``{n}`` stands for a figure at several sizes, such as ``tpp_{n}`` at 20 and 100 ablated features.

    Attributes:
        name: in final_info.json, comparisons and plans.
        label: column heading.
        better: which way is better; None if neither is.
        read: where the result holds it, as a number or an :class:`Estimate`: attributes and keys joined by points, such as
            ``states.lifted.l0``, or a function of the result; with ``{n}``, a mapping from n to values. Default the
            attribute of the figure's name. None if anything on the way there is None or missing from a mapping.
        headline: shown in summary tables; with ``{n}``, the n for which it is.
        scale: factor applied before it is shown, as the label says.
        digits: shown after the point.
        numbers: config -> every n, for a name with ``{n}``.
        only_if: config -> whether these settings measure it; None if all settings do. Where a result holds None for such
            a figure, it was not measured and has no place in a table.
        by_position: result -> positions and the figure at each, for a chart; None if it is not known by position.
        superseded_by: name of another figure that charts show in its place where it was measured; this one's charts are
            then folded away.
        gain_of: name of the figure whose excess over a control this one is. Where a difference in the gain is marked, tables
            say how much of it is a difference in that figure; the rest is the control's.
        before_training: name of the figure that is the same of the SAE before its first step. Where a difference is marked,
            tables show it, for an untrained SAE may have as much.
    """

    name: str
    label: str
    better: Literal["up", "down"] | None = None
    read: str | Callable[[Any], Value | Mapping[int, Value]] | None = None
    headline: bool | tuple[int, ...] = False
    scale: float = 1.0
    digits: int = 3
    numbers: Callable[[Any], Iterable[int]] | None = None
    only_if: Callable[[Any], bool] | None = None
    by_position: Callable[[Any], tuple[Sequence[int], Sequence[float | None]]] | None = None
    superseded_by: str | None = None
    gain_of: str | None = None
    before_training: str | None = None

    def at(self, n: int) -> Figure:
        """This figure at one size."""
        headline = n in self.headline if isinstance(self.headline, tuple) else self.headline
        name, label = self.name.format(n=n), self.label.format(n=n)
        gain_of = None if self.gain_of is None else self.gain_of.format(n=n)
        return replace(self, name=name, label=label, headline=headline, numbers=None, gain_of=gain_of)

    def called(self, name: str) -> Figure | None:
        """This figure if that is its name, at the size that the name holds; else None."""
        if self.numbers is None:
            return self if name == self.name else None
        match = re.fullmatch(re.escape(self.name).replace(r"\{n\}", r"(\d+)"), name)
        return self.at(int(match[1])) if match else None

    def of(self, result: EvalResult) -> Iterator[tuple[str, Estimate]]:
        """Name and estimate of this figure in a result, at every size; nothing if it was not measured."""
        value = self.read(result) if callable(self.read) else _at(result, self.read or self.name)
        values = (
            {self.name.format(n=n): v for n, v in value.items()} if isinstance(value, Mapping) else {self.name: value}
        )
        for name, one in values.items():
            if one is not None or self.only_if is None:
                yield name, one if isinstance(one, Estimate) else Estimate(value=one, low=None, high=None)


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        if value is None:
            return None
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value


class Evaluation(ABC, Generic[Config, Result]):
    """One evaluation at given settings. The first line of a subclass's docstring says what it measures, in lists.

    Attributes:
        result: class of its results.
        figures: what it measures.
        needs_lm: whether it runs the language model; refused on stores of planted activations, which have none.
        reads_store: whether its results depend on the held-out store, and not on texts of its own alone.
        decides: whether a dictionary that it calls degenerate has no figures at all, of any evaluation.
        tokens_of_own_text: tokens of the longest text it reads besides the store's, which is its ``context_length`` if it
            has such a setting; 0 if it reads none, or none longer than the contexts of training.
    """

    result: ClassVar[type[Any]]
    figures: ClassVar[Sequence[Figure]]
    needs_lm: ClassVar[bool] = True
    reads_store: ClassVar[bool] = True
    decides: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """Its name in plans and tables."""
        return self.config.evaluation

    @property
    def file(self) -> str:
        """Name of its result files, before ``.json`` and ``.saebench.json``."""
        return self.name

    @property
    def tokens_of_own_text(self) -> int:
        """See :class:`Evaluation`."""
        return getattr(self.config, "context_length", None) or 0

    @property
    def encodes_single_tokens(self) -> bool:
        """Whether it encodes tokens without those before them, which a crosscoder over a window cannot."""
        return False

    def check_sae(self, config: SAEConfig) -> None:
        """Raise :class:`ConfigError` if it cannot be run on an SAE of this config."""
        if self.encodes_single_tokens and window_of(config) > 1:
            raise ConfigError(
                f"{self.file} encodes tokens without those before them, and {config.architecture} reads windows of "
                f"{window_of(config)}: leave out one of the two"
            )

    @abstractmethod
    def run(self, saes: Sequence[LoadedSAE], held_out: ActivationStore, load_lm: LoadLM) -> Sequence[Result]:
        """A result for each SAE, in this order.

        Args:
            saes: SAEs of the store's model and hook point.
            held_out: activations of documents that no SAE was trained on.
            load_lm: gives the language model; call it only if it is needed, for loading takes seconds.
        """

    def assets(self) -> list[str]:
        """Names of the bundled assets that its own texts are read from."""
        return []

    def check_plan(self, corpus: CorpusConfig) -> None:
        """Raise :class:`ScansionError` for settings that cannot work, before any text is read."""

    def check(self, held_out: ActivationStore) -> None:
        """Raise :class:`ScansionError` if it cannot be run on this store; quick, and so called before anything heavy."""

    def data(self, held_out: ActivationStore) -> dict[str, object]:
        """What the ``data`` of a result must hold for it to be used again instead of measuring once more."""
        settings: dict[str, object] = {"config": self.config.model_dump(mode="json")}
        return settings | ({"store": held_out.manifest.key} if self.reads_store else {})

    def saebench(self, result: Result, sae: LoadedSAE) -> dict[str, Any] | None:
        """The result in SAEBench's layout; None if SAEBench has no such evaluation."""
        return None

    def save_more(self, sae: LoadedSAE, folder: Path) -> None:
        """Write what results leave out, such as arrays, to the run's ``evals`` folder, before the result is written."""

    def result_for(
        self, sae: LoadedSAE, held_out: ActivationStore, reasons: Sequence[str] = (), seed: int = 0, **figures: Any
    ) -> Result:
        """A result on this store, with settings filled in too; see :meth:`EvalResult.of`."""
        return self.result.of(sae, self.data(held_out), seed, reasons, **figures)

    def measured(self) -> list[str]:
        """Names of the figures that these settings give."""
        found: list[str] = []
        for figure in self.figures:
            if figure.only_if is None or figure.only_if(self.config):
                numbers = figure.numbers
                found += [figure.name] if numbers is None else [figure.at(n).name for n in numbers(self.config)]
        return found


class EvaluationRegistry(Registry[EvaluationConfig, type[Evaluation[Any, Any]]]):
    """All evaluations, by name; a figure's name belongs to one of them."""

    def __init__(self) -> None:
        super().__init__("evaluation", "evaluation", EvaluationConfig, "scansion.evaluations")

    def register(self, config: type[EvaluationConfig]) -> Callable[[Any], Any]:
        """Class decorator; see :meth:`Registry.register`.

        Raises:
            ConfigError: also if another evaluation has a figure of the same name.
        """
        keep, name = super().register(config), self.name_of(config)

        def checked(item: type[Evaluation[Any, Any]]) -> type[Evaluation[Any, Any]]:
            for other in [other for other in self._items if other != name]:
                names = {figure.name for figure in self._items[other][1].figures}
                if taken := names.intersection(figure.name for figure in item.figures):
                    raise ConfigError(
                        f"evaluation {name!r}: {other!r} has a figure called {', '.join(sorted(taken))} already; "
                        "choose another name"
                    )
            return keep(item)

        return checked

    def figure(self, name: str) -> Figure | None:
        """The figure of this name, whichever evaluation measures it; None if none does."""
        for evaluation in map(self.called, self.names()):
            for figure in evaluation.figures:
                if (found := figure.called(name)) is not None:
                    return found
        return None

    def parse_all(self, settings: Mapping[str, Any]) -> dict[str, EvaluationConfig]:
        """Name -> settings as read from YAML; ``core``, which says whether there is anything to measure, is always added.

        Raises:
            ConfigError: an unknown name or setting, or a value out of range.
        """
        parsed: dict[str, EvaluationConfig] = {}
        for name, given in {"core": None, **settings}.items():
            kind = self.config_called(name)
            try:
                parsed[name] = given if isinstance(given, kind) else kind.model_validate({} if given is None else given)
            except ValidationError as error:
                raise ConfigError(f"{name}: {describe(error, 'settings', kind)}") from error
        return parsed

    def build(self, configs: Mapping[str, EvaluationConfig]) -> dict[str, Evaluation[Any, Any]]:
        """The evaluations at these settings, by name."""
        return {name: self.of(config)(config) for name, config in configs.items()}


evaluations = EvaluationRegistry()


def figures_in(result: EvalResult) -> dict[str, Estimate]:
    """Every figure that a result holds, by name; empty unless its status is ``ok``."""
    if result.status != "ok":
        return {}
    figures = evaluations.called(result.eval).figures
    return {name: estimate for figure in figures for name, estimate in figure.of(result)}
