// Sentences of one's own, which `scansion look RUN "text" --page` adds: which features of that run fire on each token.

let ownSentences = [];

/** The sentences of this run in which a feature fires, as contexts. */
function sentencesWith(features, f) {
  return ownSentences.flatMap((one, number) => {
    if (one.sae !== features.fingerprint) return [];
    const acts = new Map(one.features.flatMap((some, p) => some.filter(([other]) => other === f).map(([, act]) => [p, act / (features.table.max_act[f] || act)])));
    return acts.size ? [{ name: `sentence ${number + 1}`, acts, words: one.tokens }] : [];
  });
}

async function readSentences(abouts) {
  ownSentences = (await chunkJson("sentences")).filter((one) => abouts.some((about) => about.fingerprint === one.sae));
}

/** Show them below the table; `go(f, index)` opens a feature of a run. */
function showSentences(abouts, go) {
  document.getElementById("sentences").hidden = ownSentences.length === 0;
  document.getElementById("sentence-list").replaceChildren(...ownSentences.map((one, number) => {
    const index = abouts.findIndex((about) => about.fingerprint === one.sae);
    const found = make("div", { class: "firing", "aria-live": "polite" });
    const highest = Math.max(1e-9, ...one.features.flat().map(([, act]) => act));
    const tokens = one.tokens.map((token, p) => {
      const button = make("button", { type: "button", class: "token", "aria-pressed": "false", onclick: () => {
        for (const other of tokens) other.setAttribute("aria-pressed", String(other === button));
        const some = one.features[p];
        found.replaceChildren(some.length
          ? make("ol", { class: "bars" }, ...some.map(([f, act]) => make("li", {}, bar(act / highest),
            make("button", { type: "button", class: "link", onclick: () => go(f, index) }, `feature ${f}`), make("span", { class: "value" }, significant(act)))))
          : make("p", { class: "muted small" }, p === 0 ? "Position 0 took no part in training." : "No feature fires on it."));
      } }, visible(token));
      button.style.setProperty("--heat", ((one.features[p][0]?.[1] ?? 0) / highest).toFixed(3));
      return button;
    });
    return make("article", { class: "sentence" },
      make("p", { class: "muted small" }, swatch(abouts[index].colour), `sentence ${number + 1}, ${abouts[index].arm}`),
      make("p", { class: "context" }, ...tokens), found);
  }));
}
