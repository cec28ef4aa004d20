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

const MOST_SHOWN = 12; // features of one token

/** Show them below the table; `go(f, index)` opens a feature of a run. */
async function showSentences(abouts, go) {
  document.getElementById("sentences").hidden = ownSentences.length === 0;
  const articles = await Promise.all(ownSentences.map(async (one, number) => {
    const index = abouts.findIndex((about) => about.fingerprint === one.sae);
    const features = await readFeatures(abouts, index);
    const share = ([f, act]) => act / (features.table.max_act[f] || act); // of its highest activation on the held-out text
    const found = make("div", { class: "firing", "aria-live": "polite" });
    const tokens = one.tokens.map((token, p) => {
      const button = make("button", { type: "button", class: "token", "aria-pressed": "false", onclick: () => {
        for (const other of tokens) other.setAttribute("aria-pressed", String(other === button));
        found.replaceChildren(firingOn(one.features[p], p, share, features, (f) => go(f, index)));
      } }, visible(token));
      button.style.setProperty("--heat", Math.min(1, Math.max(0, ...one.features[p].map(share))).toFixed(3));
      return button;
    });
    return make("article", { class: "sentence" },
      make("p", { class: "muted small" }, swatch(features.colour), `sentence ${number + 1}, ${features.arm}`),
      make("p", { class: "context" }, ...tokens), found);
  }));
  document.getElementById("sentence-list").replaceChildren(...articles);
}

/** The features that fire on one token, the strongest first, with the token that each is most active on elsewhere. */
function firingOn(some, p, share, features, open) {
  if (!some.length) return make("p", { class: "muted small" }, p === 0 ? "Position 0 took no part in training." : "No feature fires on it.");
  const rest = some.length - MOST_SHOWN;
  return make("div", {}, make("ol", { class: "bars" }, ...some.slice(0, MOST_SHOWN).map(([f, act]) => make("li", {}, bar(share([f, act])),
    make("button", { type: "button", class: "link", onclick: () => open(f) }, `feature ${f} `, make("span", { class: "word" }, word(features.tokenAt("peaks", f)))),
    make("span", { class: "value" }, significant(act))))),
  rest > 0 ? make("p", { class: "muted small" }, `and ${rest} weaker ones`) : null);
}
