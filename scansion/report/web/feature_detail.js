// One feature: where and how strongly it fires, contexts, and the features and tokens that it goes together with.

const AROUND = 14; // tokens shown on either side of a peak

/** Everything about feature f, from its block. */
async function readFeature(features, f) {
  const [block, { tokens, lengths }] = await Promise.all([
    chunkArrays(`block-${features.index}-${Math.floor(f / features.block)}`), chunkArrays("contexts")]);
  const i = f % features.block;
  const contexts = Array.from(row(block.contexts, i)).flatMap((oneMore, k) => {
    if (oneMore === 0) return [];
    const slot = i * block.contexts.shape[1] + k;
    const acts = new Map();
    for (let e = block.offsets[slot]; e < block.offsets[slot + 1]; e++) acts.set(block.positions[e], block.acts[e] / 255);
    const words = Array.from(row(tokens, oneMore - 1).subarray(0, lengths[oneMore - 1]), (token) => features.vocabulary[token]);
    const n = features.n_top, weaker = (block.contexts.shape[1] - n) / 2;
    return [{ name: `context ${oneMore - 1}`, acts, words, kind: k < n ? 0 : k < n + weaker ? 1 : 2 }];
  });
  const scaled = (bytes, highest) => Array.from(row(bytes, i), (byte) => (byte / 255) * highest[i]);
  const pairs = (names, values, less = 0) => Array.from(row(block[names], i), (other, k) => [other - less, row(block[values], i)[k]]);
  return {
    f, contexts,
    rates: scaled(block.rates, block.highest_rate),
    mask: block.mask ? scaled(block.mask, block.highest_mask) : null,
    histogram: Array.from(row(block.histogram, i)),
    neighbours: pairs("neighbours", "cosines"),
    partners: pairs("partners", "shares", 1).filter(([other]) => other >= 0),
    elsewhere: block.elsewhere ? pairs("elsewhere", "elsewhere_cosines").map(([other, cosine], k) => [features.elsewhere[k], other, cosine]) : [],
    entries: pairs("dimensions", "entries"),
    lens: block.lens ? { tokens: row(block.lens, i), logits: row(block.logits, i), histogram: Array.from(row(block.lens_histogram, i)), n: block.lens.shape[2] } : null,
  };
}

const KINDS = ["Contexts where it is most active", "Contexts where it is about half as active", "Contexts where it is weakly active"];

/** Fill the article with a feature. `go(f, index)` opens another one, perhaps of another run. */
async function showFeature(article, features, f, go, close, stillWanted) {
  const [feature, explanations] = await Promise.all([readFeature(features, f), chunkJson(`explanations-${features.index}`)]);
  if (!stillWanted()) return;
  const { table } = features;
  const facts = [
    ["density", percent(table.density[f])],
    ["specialisation", `${number(1000 * table.specialisation[f], 2)} mbit`],
    ...(features.mask ? [["fidelity", number(table.fidelity[f], 3)]] : []),
    ["max activation", significant(table.max_act[f])],
    ["mean position", number(table.centre[f], 0)],
    ...(table.sink[f] > 0 ? [["on outlier tokens", percent(table.sink[f])]] : []),
  ];
  const own = sentencesWith(features, f);
  const groups = [["Sentences of your own", own], ...KINDS.map((title, kind) => [title, feature.contexts.filter((one) => one.kind === kind)])];
  const lists = groups.filter(([, some]) => some.length).flatMap(([title, some]) => [make("h4", {}, title),
    make("ol", { class: "contexts" }, ...some.map((one) => contextItem(one, table.max_act[f])))]);
  const alive = feature.contexts.length > 0;
  article.replaceChildren(...[
    make("header", {},
      make("h3", { tabindex: "-1" }, swatch(features.colour), `Feature ${f}`, make("span", { class: "muted" }, ` ${features.arm}`)),
      make("button", { type: "button", class: "close", onclick: close, "aria-label": "Close the feature (Esc)" }, "✕")),
    make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    explanations[f] ? make("p", { class: "explanation", title: "what a language model said of its examples; see the evaluation autointerp" }, explanations[f]) : null,
    make("div", { class: "pair even" },
      make("section", {}, make("h4", {}, "Where it fires"), profileChart(feature, features)),
      make("section", {}, make("h4", {}, "How strongly it fires"),
        histogramChart(`Histogram of the activations of feature ${f}, up to ${significant(table.max_act[f])}`, feature.histogram, [0, table.max_act[f]], "activation", "firings"))),
    make("p", { class: "muted small" }, features.mask_note),
    ...lists,
    alive ? null : make("p", { class: "muted" }, "It never fired on the held-out text."),
    make("div", { class: "pair" },
      make("section", {}, make("h4", {}, "Features with the most similar decoder rows"), featureList(feature.neighbours, features, go),
        make("p", { class: "muted small entries" }, `Largest entries of its decoder row: ${feature.entries.map(([dimension, entry]) => `dimension ${dimension} (${significant(entry)})`).join(", ")}.`)),
      make("section", {}, make("h4", {}, "Tokens whose logits its decoder row changes most"), lensLists(feature, features))),
    make("div", { class: "pair even" },
      make("section", { class: "partners" }, make("h4", { title: "share of the tokens on which either fires that have both" }, "Features that fire on the same tokens"),
        feature.partners.length ? featureList(feature.partners, features, go, percent) : make("p", { class: "muted" }, "None fires with it twice.")),
      feature.elsewhere.length ? make("section", { class: "elsewhere" }, make("h4", {}, "Nearest feature in the other runs"), otherRuns(feature, features, go)) : null),
  ].filter(Boolean));
  article.scrollTop = 0;
}

function swatch(colour) {
  const element = make("i", { class: "swatch", "aria-hidden": "true" });
  element.style.setProperty("--colour", colour);
  return element;
}

function contextItem({ name, acts, words }, highest) {
  const peak = [...acts].reduce((best, one) => (one[1] > best[1] ? one : best), [0, 0]);
  const span = (p) => {
    const share = acts.get(p) ?? 0;
    const text = visible(words[p]);
    // The space before a word is not part of what is marked, so that lines break there.
    const gap = text.length > 1 && text.startsWith(" ") ? 1 : 0;
    const token = make("span", { class: p === peak[0] ? "token peak" : "token",
      title: `position ${p}${share ? `: ${significant(share * highest)}` : ""}` }, text.slice(gap));
    if (share) token.style.setProperty("--heat", (0.12 + 0.88 * Math.min(1, share)).toFixed(3));
    return [text.slice(0, gap), token];
  };
  const text = make("p", { class: "context" });
  const fill = (begin, end) => {
    const places = Array.from({ length: end - begin }, (_, i) => begin + i);
    text.replaceChildren(begin > 0 ? "… " : "", ...places.flatMap(span), end < words.length ? " …" : "");
  };
  const [begin, end] = [Math.max(0, peak[0] - AROUND), Math.min(words.length, peak[0] + AROUND + 1)];
  fill(begin, end);
  const whole = make("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => {
    const opened = whole.getAttribute("aria-expanded") === "true";
    whole.setAttribute("aria-expanded", String(!opened));
    whole.textContent = opened ? "whole context" : "around the peak";
    if (opened) fill(begin, end);
    else fill(0, words.length);
  } }, "whole context");
  const note = `${significant(peak[1] * highest)} at position ${peak[0]}`;
  return make("li", {}, text, make("p", { class: "muted small" }, note, " · ", name, " · ", whole));
}

function featureList(pairs, features, go, show = (value) => number(value, 3)) {
  return make("ol", { class: "bars" }, ...pairs.map(([other, value]) =>
    make("li", {}, bar(value),
      make("button", { type: "button", class: "link", onclick: () => go(other, features.index) },
        `${other} `, make("span", { class: "word" }, word(features.tokenAt("peaks", other)))),
      make("span", { class: "value" }, show(value)))));
}

function otherRuns(feature, features, go) {
  return make("ol", { class: "bars" }, ...feature.elsewhere.map(([index, other, cosine]) =>
    make("li", {}, bar(cosine),
      make("button", { type: "button", class: "link", onclick: () => go(other, index) },
        swatch(features.runs[index].colour), `${features.runs[index].arm} ${other}`),
      make("span", { class: "value" }, number(cosine, 3)))));
}

function lensLists(feature, features) {
  const { lens } = feature;
  if (!lens) return make("p", { class: "muted" }, "No logit lens was computed.");
  const highest = Math.max(...lens.logits.map(Math.abs));
  const list = (start, name) => make("div", {}, make("h5", {}, name), make("ol", { class: "bars" },
    ...Array.from({ length: lens.n }, (_, i) => make("li", {}, bar(Math.abs(lens.logits[start + i]) / highest),
      make("span", { class: "word" }, word(features.vocabulary[lens.tokens[start + i]])),
      make("span", { class: "value" }, significant(lens.logits[start + i]))))));
  return make("div", {}, make("div", { class: "lens" }, list(0, "raised"), list(lens.n, "lowered")),
    histogramChart(`Histogram of the logits that feature ${feature.f} gives to all tokens`, lens.histogram, [lens.logits[lens.n], lens.logits[0]], "logit of every token", "tokens"));
}

function bar(share) {
  const element = make("span", { class: "bar", "aria-hidden": "true" });
  element.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(3));
  return element;
}
