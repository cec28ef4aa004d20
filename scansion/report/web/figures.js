// The plots of the page: each is drawn when it comes near the view; the key shows and hides runs in all of them.

const hiddenArms = new Set();

/** A figure with the traces of hidden runs left out of sight. */
function withoutHidden(figure) {
  return { ...figure, data: figure.data.map((trace) => ({ ...trace, visible: !hiddenArms.has(trace.meta?.arm) })) };
}

async function startFigures() {
  if (!hasChunk("charts")) return;
  const figures = await chunkJson("charts");
  const charts = [...document.querySelectorAll("[data-chart]")];
  const seen = new Set();
  const redraw = (element) => draw(element, withoutHidden(figures[element.dataset.chart]));
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      seen.add(target);
      redraw(target);
    }
  }, { rootMargin: "500px" });
  charts.forEach((chart) => watcher.observe(chart));
  onThemeChange(() => seen.forEach(redraw));
  for (const button of document.querySelectorAll("#key button")) {
    button.addEventListener("click", () => {
      const arm = Number(button.dataset.arm);
      if (!hiddenArms.delete(arm)) hiddenArms.add(arm);
      button.setAttribute("aria-pressed", String(!hiddenArms.has(arm)));
      seen.forEach(redraw);
    });
  }
}
