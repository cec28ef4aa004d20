// The browser of features: which SAE, what is searched, which feature is open, and the keys that work everywhere.

/** One SAE's features: what the index says of them, its table, and the words. */
async function readFeatures(about, index) {
  const [table, vocabulary] = await Promise.all([chunkArrays(`table-${index}`), chunkJson("vocabulary")]);
  const tokenAt = (column, f) => {
    const token = row(table[column], f)[0];
    return token === NONE ? "" : vocabulary[token];
  };
  return { ...about, index, table, vocabulary, tokenAt };
}

async function startFeatures() {
  if (!hasChunk("features")) return;
  const abouts = await chunkJson("features");
  const find = (id) => document.getElementById(id);
  const [arms, search, sorting, count, article, pane] =
    ["feature-run", "feature-search", "feature-sort", "feature-count", "feature", "feature-pane"].map(find);
  let current = null;

  const empty = () => {
    pane.classList.remove("open");
    document.body.classList.remove("covered");
    article.replaceChildren(make("p", { class: "muted hint" }, "Choose a feature to see what it responds to."));
    table.mark(null);
  };
  const close = () => {
    empty();
    history.replaceState(null, "", "#features");
    table.focus();
  };
  const open = async (f, moveFocus) => {
    table.mark(f);
    history.replaceState(null, "", `#feature-${current.index}-${f}`);
    pane.classList.add("open");
    document.body.classList.toggle("covered", narrow());
    await showFeature(article, current, f, (other) => open(other, true), close);
    if (moveFocus || narrow()) article.querySelector("h3").focus({ preventScroll: true });
  };
  const table = new FeatureTable(find("feature-grid"), open);
  const tell = () => {
    const shown = table.order.length;
    count.textContent = shown === current.n ? `${number(shown, 0)} features` : `${number(shown, 0)} of ${number(current.n, 0)} features`;
    sorting.value = table.sorting.key;
  };
  const choose = async (index) => {
    current = await readFeatures(abouts[index], index);
    arms.value = String(index);
    table.root.classList.toggle("unmasked", !current.mask);
    if (!current.mask && table.sorting.key === "fidelity") table.sorting = { key: "specialisation", direction: "descending" };
    empty();
    table.show(current);
    tell();
  };

  abouts.forEach((about, index) => arms.append(make("option", { value: index }, `${about.arm} (seed ${about.seed})`)));
  for (const column of COLUMNS.filter((one) => one.value)) sorting.append(make("option", { value: column.key }, column.title));
  arms.addEventListener("change", () => choose(Number(arms.value)));
  search.addEventListener("input", () => { table.search(search.value); tell(); });
  sorting.addEventListener("change", () => { table.sortBy(sorting.value, COLUMNS.find((one) => one.key === sorting.value).first); tell(); });
  table.head.addEventListener("click", tell);
  onThemeChange(() => {
    table.redraw();
    if (table.chosen !== null) open(table.chosen, false);
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      table.search("");
      tell();
      table.focus();
    } else if (event.key === "Escape" && table.chosen !== null) {
      close();
    } else if (event.key === "ArrowDown" && event.target === search) {
      event.preventDefault();
      table.focus(0);
    }
  });

  const follow = async () => {
    const asked = /^#feature-(\d+)-(\d+)$/.exec(location.hash)?.slice(1).map(Number);
    const index = asked && asked[0] < abouts.length ? asked[0] : 0;
    if (asked || !current) await choose(index);
    if (asked && asked[1] < current.n) {
      await open(asked[1], false);
      pane.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", follow);
  await follow();
}
