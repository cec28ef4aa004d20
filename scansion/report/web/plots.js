// Plots: Plotly is unpacked when the first plot comes into view, and every plot takes the colours of the page.

let plotlyReady = null;

function plotly() {
  plotlyReady ??= chunkText("plotly").then((code) => {
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
    return window.Plotly;
  });
  return plotlyReady;
}

/** Only buttons that stay within the page; none where there is no pointer to hover with. */
const PLOT_CONFIG = { responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

/** A layout with the page's colours and fonts under whatever the figure itself says. */
function themed(layout) {
  const axis = (own) => ({
    gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), tickcolor: colour("line"),
    automargin: true, ...own,
    title: own?.title ? { font: { size: 13 }, standoff: 8, ...own.title } : undefined,
  });
  const found = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
    margin: { l: 56, r: 12, t: 10, b: 44 }, showlegend: false, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("ink") },
    ...layout,
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) found[name] = axis(layout[name]);
  return found;
}

/** Draw or redraw a figure, {data, layout}, in an element. */
async function draw(element, figure) {
  const library = await plotly();
  await library.react(element, figure.data, themed(figure.layout), PLOT_CONFIG);
  element.dataset.drawn = "yes";
}
