// Search inside the contexts that features are shown in, and the table as a file.

/** Each context as one text in lower case, and where in it each token begins. */
async function contextTexts(vocabulary) {
  return once("context texts", async () => {
    const { tokens, lengths } = await chunkArrays("contexts");
    return Array.from(lengths, (length, context) => {
      const words = Array.from(row(tokens, context).subarray(0, length), (token) => vocabulary[token].toLowerCase());
      const starts = new Uint32Array(length);
      for (let p = 1; p < length; p++) starts[p] = starts[p - 1] + words[p - 1].length;
      return { text: words.join(""), starts };
    });
  });
}

/** Which features (1 or 0) have the query in a part of a context that they are shown with. */
async function matchingContexts(features, query) {
  const wanted = query.trim().toLowerCase();
  const [texts, where] = await Promise.all([contextTexts(features.vocabulary), chunkArrays(`where-${features.index}`)]);
  const hits = new Uint8Array(features.n);
  if (!wanted) return hits.fill(1);
  const places = texts.map(({ text, starts }) => {
    const found = [];
    for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + 1)) {
      let p = 0, end = starts.length - 1;
      while (p < end) { // the last token that begins at or before the match
        const middle = (p + end + 1) >> 1;
        if (starts[middle] <= at) p = middle;
        else end = middle - 1;
      }
      if (found.at(-1) !== p) found.push(p);
    }
    return found;
  });
  const K = where.contexts.shape[1];
  for (let slot = 0; slot < where.contexts.length; slot++) {
    const oneMore = where.contexts[slot];
    if (oneMore && places[oneMore - 1].some((p) => Math.abs(p - where.peaks[slot]) <= AROUND)) hits[Math.floor(slot / K)] = 1;
  }
  return hits;
}

/** Features as comma-separated values. Text that a spreadsheet would take for a formula gets a quote before it. */
function csvOf(features, list) {
  const { table } = features;
  const text = (token) => `"${token.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const value = (number) => (Number.isFinite(number) ? Number(number.toPrecision(6)) : "");
  const tokens = (column, f) => text(table[column] ? Array.from(row(table[column], f)).filter((token) => token !== NONE).map((token) => visible(features.vocabulary[token])).join(" | ") : "");
  const lines = Array.from(list, (f) => [
    f, tokens("peaks", f), tokens("lens", f), value(1000 * table.specialisation[f]), value(table.fidelity[f]), value(table.density[f]),
    value(table.max_act[f]), value(table.centre[f]), value(table.sink[f]),
  ].join(","));
  return ["feature,peak_tokens,raised_tokens,specialisation_mbit,fidelity,density,max_act,mean_position,sink_share", ...lines, ""].join("\r\n");
}

function saveAs(name, text) {
  const address = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
