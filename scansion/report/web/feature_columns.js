// The columns of the table of features: what each shows, and how it is sorted.

const NONE = 0xffffffff;

/** Columns in order; `value(table, f)` is what is sorted by, `cell(features, f)` what is shown. */
const COLUMNS = [
  { key: "feature", title: "feature", hint: "index in the dictionary", first: "ascending",
    value: (table, f) => f, cell: (features, f) => String(f) },
  { key: "token", title: "peak token", hint: "the token on which it is most active",
    cell: peakToken },
  { key: "strip", title: "by position", hint: "how often it fires, from the first position to the last", cell: strip },
  { key: "specialisation", title: "specialisation", unit: "mbit",
    hint: "mutual information of firing and position above chance, in thousandths of a bit", first: "descending",
    value: (table, f) => table.specialisation[f], cell: (features, f) => number(1000 * features.table.specialisation[f], 2) },
  { key: "fidelity", title: "fidelity", hint: "AUROC of the mask as a predictor of firing; 0.5 is chance", first: "descending",
    value: (table, f) => table.fidelity[f], cell: (features, f) => number(features.table.fidelity[f], 3) },
  { key: "density", title: "density", hint: "share of tokens on which it fires, at positions its mask allows", first: "descending",
    value: (table, f) => table.density[f], cell: (features, f) => percent(features.table.density[f]) },
  { key: "max_act", title: "max act", hint: "highest activation", first: "descending",
    value: (table, f) => table.max_act[f], cell: (features, f) => significant(features.table.max_act[f]) },
  { key: "centre", title: "mean pos.", hint: "mean position, weighted by firing rate", first: "ascending",
    value: (table, f) => table.centre[f], cell: (features, f) => number(features.table.centre[f], 0) },
];

const SINK = 0.5; // share of its activation on outlier tokens and at position 0

const isDead = (table, f) => table.density[f] === 0;
const isSink = (table, f) => table.sink[f] > SINK;

/** Which features the table shows. */
const FILTERS = [
  { key: "all", title: "all features", test: () => true },
  { key: "alive", title: "that fired", test: (table, f) => !isDead(table, f) },
  { key: "dead", title: "never fired", test: isDead },
  { key: "dense", title: "dense: above 10% of tokens", test: (table, f) => table.density[f] > 0.1 },
  { key: "rare", title: "rare: below 0.01% of tokens", test: (table, f) => !isDead(table, f) && table.density[f] < 1e-4 },
  { key: "sink", title: "sink-like: mostly on outlier tokens", test: isSink },
  { key: "ordinary", title: "neither dead nor sink-like", test: (table, f) => !isDead(table, f) && !isSink(table, f) },
];

function peakToken(features, f) {
  const text = features.table.peaks[f * features.table.peaks.shape[1]] === NONE ? "" : word(features.tokenAt("peaks", f));
  if (!isSink(features.table, f)) return text;
  return make("span", {}, text, " ", make("span", { class: "badge", title: "more than half of its activation is on outlier tokens or at position 0" }, "sink"));
}

/** The features of a list in the order of a column; those without a value come last, equals in order of index.
 *  Sink-like features stand after all others, and those that never fired after these; not in order of index. */
function sorted(list, table, column, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const values = Float64Array.from(list, (f) => column.value(table, f));
  const apart = Uint8Array.from(list, (f) => (column.key === "feature" ? 0 : isDead(table, f) ? 2 : isSink(table, f) ? 1 : 0));
  const order = Uint32Array.from(list, (_, i) => i);
  order.sort((a, b) => {
    if (apart[a] !== apart[b]) return apart[a] - apart[b];
    const x = values[a], y = values[b];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || list[a] - list[b];
    return sign * (x - y) || list[a] - list[b];
  });
  return Uint32Array.from(order, (i) => list[i]);
}

/** The features whose number is the query, or one of whose tokens (at a peak, or raised by its decoder row) contains it. */
function matching(features, query) {
  const { table, vocabulary, n } = features;
  const wanted = query.trim().toLowerCase();
  const all = Uint32Array.from({ length: n }, (_, f) => f);
  if (!wanted) return all;
  const hit = Uint8Array.from(vocabulary, (token) => token.toLowerCase().includes(wanted));
  const groups = [table.peaks, table.lens].filter(Boolean);
  const index = /^#?\d+$/.test(wanted) ? Number(wanted.replace("#", "")) : -1;
  return all.filter((f) => f === index || groups.some((tokens) => row(tokens, f).some((token) => token !== NONE && hit[token])));
}

/** The profile as a row of cells, darker where the feature fires more. */
function strip(features, f) {
  const rates = row(features.table.strip, f);
  const canvas = make("canvas", { class: "strip", width: rates.length, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(rates.length, 1);
  const [red, green, blue] = colour("strip").split(/[ ,]+/).map(Number);
  for (let i = 0; i < rates.length; i++) image.data.set([red, green, blue, rates[i]], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}
