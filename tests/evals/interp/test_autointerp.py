"""Automated interpretability against a judge on loopback, and the forecast without one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import ValidationError

from scansion.errors import EvalError
from scansion.evals import figures_in
from scansion.evals.base import LoadedSAE
from scansion.evals.interp.autointerp import AutoInterpConfig, detection_scores, evaluate_autointerp, read_numbers
from scansion.evals.interp.chat import ChatEndpoint
from scansion.evals.interp.evaluation import AutoInterp
from scansion.evals.interp.examples import ExampleCounts, gather_examples
from scansion.evals.interp.firing import Firing, firing_of_sample
from scansion.evals.interp.offline import OfflineInterpConfig, evaluate_offline_interp, forecast_features
from tests.evals.probing.constructed import make_subject

Judge = Callable[[list[dict[str, str]]], str]
SMALL = ExampleCounts(top_shown=2, weighted_shown=1, top_asked=1, weighted_asked=1, random_asked=4, buffer=1)


class Server:
    """A chat endpoint on loopback: answers by ``judge``, after as many failures with ``status`` as it is told."""

    def __init__(self, judge: Judge, failures: int = 0, status: int = 503, body: bytes | None = None) -> None:
        self.asked: list[dict[str, object]] = []
        self.keys: list[str | None] = []
        outer, self.failures = self, failures

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({"path": self.path, **request})
                outer.keys.append(self.headers["Authorization"])
                if outer.failures > 0:
                    outer.failures -= 1
                    self.send_error(status, "busy")
                    return
                said = {"choices": [{"message": {"content": judge(request["messages"])}}]}
                payload = body if body is not None else json.dumps(said).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(judge: Judge = lambda _: "yes", **how: object) -> Server:
        servers.append(Server(judge, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


QUESTION = [{"role": "user", "content": "?"}]


def test_a_busy_endpoint_is_asked_again_and_the_key_is_sent(serve) -> None:
    server = serve(lambda _: "  yes ", failures=2)
    assert ChatEndpoint(server.url, "judge", "secret", wait=0.01).complete(QUESTION, 5) == "yes"
    assert len(server.asked) == 3 and server.keys[-1] == "Bearer secret"
    assert server.asked[-1]["path"] == "/v1/chat/completions" and server.asked[-1]["model"] == "judge"
    assert "secret" not in repr(ChatEndpoint(server.url, "judge", "secret"))


def test_a_refusal_is_not_asked_again(serve) -> None:
    server = serve(failures=9, status=401)
    with pytest.raises(EvalError, match=r"HTTP 401.*OPENAI_API_KEY"):
        ChatEndpoint(server.url, "judge", wait=0.01).complete(QUESTION, 5)
    assert len(server.asked) == 1


def test_retries_end_and_other_answers_are_named(serve) -> None:
    server = serve(failures=9)
    with pytest.raises(EvalError, match="HTTP 503"):
        ChatEndpoint(server.url, "judge", retries=1, wait=0.01).complete(QUESTION, 5)
    assert len(server.asked) == 2
    with pytest.raises(EvalError, match="not a chat completion"):
        ChatEndpoint(serve(body=b"<html>").url, "judge", wait=0.01).complete(QUESTION, 5)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(EvalError, match="did not answer"):
        ChatEndpoint(server.url, "judge", retries=1, wait=0.01).complete(QUESTION, 5)


def test_the_endpoint_is_asked_for_before_anything_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValidationError, match="set OPENAI_BASE_URL"):
        AutoInterpConfig()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_MODEL", "judge")
    assert AutoInterpConfig().model == "judge"


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [("2, 5, 11", [2, 5, 11]), ("2 and 5.", [2, 5]), ("None", []), ("none.", []), ("I think 2", None), ("", None)],
)
def test_answers_are_read(answer: str, numbers: list[int] | None) -> None:
    assert read_numbers(answer) == numbers


def test_detection_has_its_closed_form() -> None:
    assert detection_scores([1, 2], [1, 2], 14) == (1.0, 1.0)
    assert detection_scores([], [1, 2, 3, 4], 14) == (10 / 14, 0.5)
    assert detection_scores([1, 3], [1, 2], 4) == (0.5, 0.5)
    assert detection_scores([], [], 4) == (1.0, None)


def planted_firing(n_documents: int = 40, length: int = 24, seed: int = 0) -> Firing:
    """Feature 0 fires on token 7, feature 1 after token 7, feature 2 at random, feature 3 on token 7 but is masked off."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 12, (length, n_documents))
    previous = np.concatenate([np.full((1, n_documents), -1), tokens[:-1]])
    acts = np.stack([tokens == 7, previous == 7, generator.random(tokens.shape) < 0.1, tokens == 7], axis=2)
    allowed = np.ones((length, 4), dtype=bool)
    allowed[12:, 3] = False
    return Firing(
        features=np.arange(4),
        acts=(acts & allowed[:, None]).astype(np.float32),
        positions=np.arange(length),
        valid=np.ones(tokens.shape, dtype=bool),
        counted=np.ones(tokens.shape, dtype=bool),
        tokens=tokens,
        previous=previous,
        documents=np.broadcast_to(np.arange(n_documents), tokens.shape).copy(),
        allowed=allowed,
    )


def test_forecasts_know_tokens_and_nothing_else() -> None:
    word, after, noise, masked = forecast_features(planted_firing(), seed=0)
    assert word.auroc == pytest.approx(1.0) and word.top_tokens[0] == 7 and word.balanced_accuracy > 0.95
    assert after.auroc == pytest.approx(1.0) and after.balanced_accuracy > 0.95
    assert noise.auroc == pytest.approx(0.5, abs=0.12)
    assert masked.auroc == pytest.approx(1.0), "tokens that the mask closes to the feature do not count against it"
    nulls = [one.null_auroc for seed in range(20) for one in forecast_features(planted_firing(seed=seed), seed)]
    assert np.mean(nulls) == pytest.approx(0.5, abs=0.1)


def test_examples_do_not_overlap_and_say_whether_the_feature_fires() -> None:
    firing = planted_firing()
    counts = ExampleCounts(top_shown=3, weighted_shown=2, top_asked=2, weighted_asked=2, random_asked=8, buffer=2)
    found = gather_examples(firing, 0, lambda token: f" t{token}", counts, np.random.default_rng(0))
    assert found is not None and (len(found.shown), len(found.asked)) == (5, 12)
    for one in (*found.shown, *found.asked):
        assert one.fires == (" t7" in one.tokens)
        assert one.text(marked=True).count("<<") == one.tokens.count(" t7")
        assert one.text() == "".join(one.tokens)
    assert all(one.fires for one in found.shown)
    assert sum(one.fires for one in found.asked) >= 4
    silent = Firing(**{**vars(firing), "acts": np.zeros_like(firing.acts)})
    assert gather_examples(silent, 0, str, counts, np.random.default_rng(0)) is None


@pytest.fixture
def subject(store) -> LoadedSAE:
    return make_subject(n_positions=store.n_positions)


def test_a_feature_is_its_sae_s_at_the_stores_tokens(store, subject: LoadedSAE) -> None:
    firing = firing_of_sample(subject, store, 5, 1, OfflineInterpConfig(use_position_0=False), 0)
    places = store.used_positions(False)
    x = store.contexts(0, store.n_contexts).x[places].float()
    acts = subject.sae.encode(x, places[:, None]).detach().numpy()[..., firing.features]
    np.testing.assert_allclose(firing.acts, np.where(firing.valid[..., None], acts, 0), atol=1e-5)
    assert (firing.previous[1:] == firing.tokens[:-1]).all()


def test_tokens_left_out_are_forecast_and_shown_by_no_feature(store, subject: LoadedSAE) -> None:
    ids = tuple(range(3, 20))
    config = OfflineInterpConfig(use_position_0=False, exclude_tokens=ids, n_features=5, least_firings=2)
    firing = firing_of_sample(subject, store, 5, 1, config, 0)
    out = np.isin(firing.tokens, ids)
    assert out.any() and not (firing.counted & out).any() and not firing.acts[out].any()
    assert (firing.counted | out | ~firing.valid).all()
    counts = ExampleCounts(top_shown=1, weighted_shown=1, top_asked=1, weighted_asked=1, random_asked=8, buffer=1)
    for column in range(len(firing.features)):
        found = gather_examples(firing, column, str, counts, np.random.default_rng(0))
        for one in (*found.shown, *found.asked) if found else ():
            assert int(one.tokens[1]) not in ids


def test_an_honest_judge_scores_well_and_a_mute_one_not_at_all(serve, store, subject: LoadedSAE) -> None:
    # The explanation is every marked word; the judge then looks for them.
    def judge(messages: list[dict[str, str]]) -> str:
        text = messages[1]["content"]
        if marked := re.findall(r"<<(.*?)>>", text):
            return "This feature fires on " + " ".join(sorted(set(marked)))
        words = set(text.split("fires on ")[1].split(".\n")[0].split())
        lines = re.findall(r"^(\d+)\. (.*)$", text, flags=re.MULTILINE)
        return ", ".join(number for number, line in lines if words & set(line.split())) or "None"

    server = serve(judge)
    config = AutoInterpConfig(
        base_url=server.url, model="judge", n_features=6, least_firings=8, max_explanation_tokens=99
    )
    (result,) = evaluate_autointerp([subject], store, lambda token: f" w{token}", config, SMALL)
    assert result.status == "ok" and result.features and result.n_unread == 0
    assert len(server.asked) == 2 * len(result.features)
    for one in result.features:
        assert (one.score, one.balanced_accuracy) == detection_scores(one.predicted or [], one.fires, 6)
    layout = AutoInterp(config).saebench(result, subject)
    assert layout["eval_result_metrics"]["autointerp"]["autointerp_score"] == result.score.value
    assert "key" not in json.dumps(layout["eval_config"])
    mute = AutoInterpConfig(base_url=serve(lambda _: "no idea").url, model="mute", n_features=3, least_firings=8)
    (unread,) = evaluate_autointerp([subject], store, lambda token: f" w{token}", mute, SMALL)
    assert unread.status == "inapplicable" and not figures_in(unread) and unread.n_unread == len(unread.features)


def test_the_offline_result_says_when_there_is_nothing_to_score(store, subject: LoadedSAE) -> None:
    (result,) = evaluate_offline_interp([subject], store, OfflineInterpConfig(n_features=8))
    assert result.status == "ok" and result.auroc is not None and 0 < figures_in(result)["token_auroc"].value <= 1
    (nothing,) = evaluate_offline_interp([subject], store, OfflineInterpConfig(least_firings=100_000))
    assert nothing.status == "degenerate" and not figures_in(nothing)
