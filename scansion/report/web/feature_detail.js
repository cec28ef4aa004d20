// One feature: the contexts where it is most active, where it fires and its mask allows it to, its neighbours, and its logit lens.

const AROUND = 14; // tokens shown on either side of a peak

/** Everything about feature f, from its block. */
async function readFeature(features, f) {
  const block = await chunkArrays(`block-${features.index}-${Math.floor(f / features.block)}`);
  const { tokens, lengths } = await chunkArrays("contexts");
  const i = f % features.block;
  const contexts = Array.from(row(block.contexts, i)).flatMap((oneMore, k) => {
    if (oneMore === 0) return [];
    const slot = i * block.contexts.shape[1] + k;
    const acts = new Map();
    for (let e = block.offsets[slot]; e < block.offsets[slot + 1]; e++) acts.set(block.positions[e], block.acts[e] / 255);
    return [{ context: oneMore - 1, acts, words: row(tokens, oneMore - 1).subarray(0, lengths[oneMore - 1]) }];
  });
  const scaled = (bytes, highest) => Array.from(row(bytes, i), (byte) => (byte / 255) * highest[i]);
  return {
    f, contexts,
    rates: scaled(block.rates, block.highest_rate),
    mask: block.mask ? scaled(block.mask, block.highest_mask) : null,
    neighbours: Array.from(row(block.neighbours, i), (other, k) => [other, row(block.cosines, i)[k]]),
    lens: block.lens ? { tokens: row(block.lens, i), logits: row(block.logits, i), n: block.lens.shape[2] } : null,
  };
}

/** Fill the article with a feature. `go` opens another one. */
async function showFeature(article, features, f, go, close) {
  const feature = await readFeature(features, f);
  const { table } = features;
  const plot = make("div", { class: "plot profile", role: "img", "aria-label": `Firing rate of feature ${f} by position` });
  const facts = [
    ["density", percent(table.density[f])],
    ["specialisation", `${number(1000 * table.specialisation[f], 2)} mbit`],
    ...(features.mask ? [["fidelity", number(table.fidelity[f], 3)]] : []),
    ["max activation", significant(table.max_act[f])],
    ["mean position", number(table.centre[f], 0)],
  ];
  article.replaceChildren(
    make("header", {},
      make("h3", { tabindex: "-1" }, `Feature ${f}`, make("span", { class: "muted" }, ` ${features.arm}`)),
      make("button", { type: "button", class: "close", onclick: close, "aria-label": "Close the feature (Esc)" }, "✕")),
    make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("h4", {}, "Where it fires"), plot,
    make("p", { class: "muted small" }, features.mask_note),
    make("h4", {}, "Contexts where it is most active"),
    feature.contexts.length
      ? make("ol", { class: "contexts" }, ...feature.contexts.map((one) => contextItem(one, features, table.max_act[f])))
      : make("p", { class: "muted" }, "It never fired on the held-out text."),
    make("div", { class: "pair" },
      make("section", {}, make("h4", {}, "Features with the most similar decoder rows"), neighbourList(feature, features, go)),
      make("section", {}, make("h4", {}, "Tokens whose logits its decoder row changes most"), lensLists(feature, features))),
  );
  article.scrollTop = 0;
  await draw(plot, profileFigure(feature, features));
}

function contextItem({ context, acts, words }, features, highest) {
  const peak = [...acts].reduce((best, one) => (one[1] > best[1] ? one : best), [0, 0]);
  const span = (p) => {
    const share = acts.get(p) ?? 0;
    const text = visible(features.vocabulary[words[p]]);
    // The space before a word is not part of what is marked, so that lines break there.
    const gap = text.length > 1 && text.startsWith(" ") ? 1 : 0;
    const token = make("span", { class: p === peak[0] ? "token peak" : "token",
      title: `position ${p}${share ? `: ${significant(share * highest)}` : ""}` }, text.slice(gap));
    if (share) token.style.setProperty("--heat", (0.12 + 0.88 * share).toFixed(3));
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
  return make("li", {}, text, make("p", { class: "muted small" }, note, " · ", `context ${context}`, " · ", whole));
}

function neighbourList(feature, features, go) {
  return make("ol", { class: "bars" }, ...feature.neighbours.map(([other, cosine]) =>
    make("li", {}, bar(cosine),
      make("button", { type: "button", class: "link", onclick: () => go(other) },
        `${other} `, make("span", { class: "word" }, word(features.tokenAt("peaks", other)))),
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
  return make("div", { class: "lens" }, list(0, "raised"), list(lens.n, "lowered"));
}

function bar(share) {
  const element = make("span", { class: "bar", "aria-hidden": "true" });
  element.style.setProperty("--share", Math.min(1, Math.max(0, share)).toFixed(3));
  return element;
}

function profileFigure(feature, features) {
  const x = features.positions;
  const data = [{ type: "scatter", mode: "lines", x, y: feature.rates, fill: "tozeroy", line: { color: colour("accent"), width: 1.5, shape: "hvh" },
    fillcolor: colour("accent-soft"), hovertemplate: "position %{x}: fires on %{y:.2%} of tokens<extra></extra>", name: "firing rate" }];
  const layout = {
    height: 190, margin: { l: 48, r: feature.mask ? 44 : 10, t: 6, b: 36 },
    xaxis: { title: { text: "position in context" }, zeroline: false },
    yaxis: { title: { text: "firing rate" }, rangemode: "tozero", tickformat: "~p", zeroline: false },
  };
  if (feature.mask) {
    data.push({ type: "scatter", mode: "lines", x, y: feature.mask, yaxis: "y2", line: { color: colour("second"), width: 1.5, dash: "dot", shape: "hvh" },
      hovertemplate: "position %{x}: mask %{y:.2f}<extra></extra>", name: "mask" });
    layout.yaxis2 = { title: { text: "mask", font: { color: colour("second") } }, overlaying: "y", side: "right", tickmode: "linear",
      dtick: Math.max(...feature.mask) > 1 ? undefined : 0.5, range: [0, 1.05 * Math.max(1, ...feature.mask)], showgrid: false, zeroline: false };
  }
  return { data, layout };
}
