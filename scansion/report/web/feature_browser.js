// The browser of features: which SAE, what is searched, which feature is open, and the keys that work everywhere.

/** One SAE's features: what the index says of them, its table, and the words. */
async function readFeatures(runs, index) {
  const [table, vocabulary] = await Promise.all([chunkArrays(`table-${index}`), chunkJson("vocabulary")]);
  const tokenAt = (column, f) => {
    const token = row(table[column], f)[0];
    return token === NONE ? "" : vocabulary[token];
  };
  return { ...runs[index], runs, index, table, vocabulary, tokenAt };
}

async function startFeatures() {
  if (!hasChunk("features")) return;
  const abouts = await chunkJson("features");
  const find = (id) => document.getElementById(id);
  const [arms, search, inside, filter, sorting, count, article, pane] =
    ["feature-run", "feature-search", "feature-in-contexts", "feature-filter", "feature-sort", "feature-count", "feature", "feature-pane"].map(find);
  let current = null;
  let asked = 0; // grows with every request to open, so that only the last one is shown
  let searched = 0;

  const empty = () => {
    asked++;
    table.byDefault = false;
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
  /** Show a feature of the run in the table, without moving anything. */
  const show = (f) => {
    const number = ++asked;
    table.mark(f);
    return showFeature(article, current, f, go, close, () => number === asked);
  };
  const open = async (f, moveFocus) => {
    history.replaceState(null, "", `#feature-${current.index}-${f}`);
    table.byDefault = false;
    pane.classList.add("open");
    document.body.classList.toggle("covered", narrow());
    await show(f);
    if (moveFocus || narrow()) article.querySelector("h3")?.focus({ preventScroll: true });
  };
  const go = async (f, index) => {
    if (index !== current.index) await choose(index);
    await open(f, true);
    if (!narrow()) pane.scrollIntoView({ block: "nearest" });
  };
  const table = new FeatureTable(find("feature-grid"), open);
  const tell = () => {
    const shown = table.order.length;
    count.textContent = shown === current.n ? `${number(shown, 0)} features` : `${number(shown, 0)} of ${number(current.n, 0)} features`;
    sorting.value = table.sorting.key;
    if (table.byDefault) showFirst();
  };
  const choose = async (index) => {
    current = await readFeatures(abouts, index);
    arms.value = String(index);
    find("feature-swatch").style.setProperty("--colour", current.colour);
    table.root.classList.toggle("unmasked", !current.mask);
    if (!current.mask && table.sorting.key === "fidelity") table.sorting = { key: "specialisation", direction: "descending" };
    for (const option of filter.options) {
      const { title, test } = FILTERS.find((one) => one.key === option.value);
      let n = 0;
      for (let f = 0; f < current.n; f++) n += test(current.table, f);
      option.textContent = `${title} (${number(n, 0)})`;
    }
    empty();
    table.hits = null;
    table.show(current);
    if (inside.checked) await look();
    tell();
  };
  /** The first feature of the table, where there is room for it beside the table. */
  const showFirst = () => {
    if (narrow() || !table.order.length || (table.chosen !== null && !table.byDefault)) return;
    table.byDefault = true;
    if (table.chosen !== table.order[0]) show(table.order[0]);
  };
  const look = async () => {
    const number = ++searched;
    search.placeholder = inside.checked ? "words in the contexts shown" : "number or token";
    const hits = inside.checked && search.value.trim() ? await matchingContexts(current, search.value) : null;
    if (number !== searched) return; // typed on meanwhile
    table.search(search.value, hits);
    tell();
  };

  abouts.forEach((about, index) => arms.append(make("option", { value: index }, `${about.arm} (seed ${about.seed})`)));
  for (const column of COLUMNS.filter((one) => one.value)) sorting.append(make("option", { value: column.key }, column.title));
  for (const { key, title } of FILTERS) filter.append(make("option", { value: key }, title));
  arms.addEventListener("change", () => choose(Number(arms.value)).then(showFirst));
  search.addEventListener("input", look);
  inside.addEventListener("change", look);
  filter.addEventListener("change", () => { table.filterBy(filter.value); tell(); });
  sorting.addEventListener("change", () => { table.sortBy(sorting.value, COLUMNS.find((one) => one.key === sorting.value).first); tell(); });
  find("feature-export").addEventListener("click", () => saveAs(`${current.arm.replace(/[^\w.-]+/g, "_")}-features.csv`, csvOf(current, table.order)));
  table.head.addEventListener("click", tell);
  onThemeChange(() => table.redraw());
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      look().then(() => table.focus());
    } else if (event.key === "Escape" && table.chosen !== null) {
      close();
    } else if (event.key === "ArrowDown" && event.target === search) {
      event.preventDefault();
      table.focus(0);
    }
  });

  const follow = async () => {
    const wanted = /^#feature-(\d+)-(\d+)$/.exec(location.hash)?.slice(1).map(Number);
    const index = wanted && wanted[0] < abouts.length ? wanted[0] : 0;
    if (wanted) {
      history.scrollRestoration = "manual"; // or a reload would go back to where the page was
      pane.scrollIntoView();
    }
    if (wanted || !current) await choose(index);
    if (wanted && wanted[1] < current.n) {
      await open(wanted[1], false);
      pane.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", follow);
  await follow();
  new IntersectionObserver((entries, watcher) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    showFirst();
  }, { rootMargin: "500px" }).observe(pane);
  await readSentences(abouts);
  await showSentences(abouts, (f, index) => go(f, index).then(() => pane.scrollIntoView()));
  if (table.chosen !== null && ownSentences.length) await show(table.chosen); // it was shown before they were read
}
