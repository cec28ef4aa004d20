// Maps of masks and profiles: one picture a state, the same features in the same rows of all.

async function startMaps() {
  if (!hasChunk("maps")) return;
  const maps = await chunkJson("maps");
  const [choice, note, panels] = ["map-run", "map-note", "map-panels"].map((id) => document.getElementById(id));
  let near = false;
  const show = async () => {
    const index = Number(choice.value);
    const map = maps[index];
    const tables = await chunkArrays(`map-${index}`);
    note.textContent = map.note;
    const plots = map.panels.map((title) => make("div", { class: "plot map", role: "img", "aria-label": `${title}, ${map.arm}` }));
    panels.replaceChildren(...map.panels.map((title, number) => make("figure", {}, make("figcaption", {}, make("strong", {}, title)), plots[number])));
    for (const [number, plot] of plots.entries()) await draw(plot, mapFigure(map, tables[number]));
  };
  maps.forEach((map, index) => choice.append(make("option", { value: index }, map.arm)));
  // One with a mask says more than one without.
  choice.value = String(Math.max(0, maps.findIndex((map) => map.panels.length > 2)));
  choice.addEventListener("change", show);
  onThemeChange(() => near && show());
  new IntersectionObserver((entries, watcher) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    near = true;
    show();
  }, { rootMargin: "500px" }).observe(panels);
}

function mapFigure(map, table) {
  const [rows, columns] = table.shape;
  const z = Array.from({ length: rows }, (_, i) => Array.from(table.subarray(i * columns, (i + 1) * columns), (byte) => byte / 255));
  return {
    data: [{ type: "heatmap", x: map.positions, z, zmin: 0, zmax: 1, showscale: false, colorscale: [[0, colour("soft")], [1, colour("accent")]],
      hovertemplate: "position %{x}: %{z:.2f}<extra></extra>" }],
    layout: { height: 330, margin: { l: 24, r: 8, t: 6, b: 40 }, xaxis: { title: { text: "position in context" }, showgrid: false, zeroline: false },
      yaxis: { title: { text: "features" }, autorange: "reversed", showticklabels: false, showgrid: false, zeroline: false } },
  };
}
