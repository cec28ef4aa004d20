// The small charts of one feature, as SVG in the page's own colours: they are there at once, without plotly.js.

const SMALL = { height: 150, left: 46, right: 12, top: 8, bottom: 30 };

// Asked of the parser, so that the page names no address.
const SVG_NAMESPACE = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG_NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A chart that is drawn again when its width changes. `paint(width)` gives its parts; `read(x, width)` what is under a pointer. */
function smallChart(label, paint, read) {
  const readout = make("p", { class: "readout", "aria-hidden": "true" });
  const element = make("div", { class: "plot small-chart", role: "img", "aria-label": label }, readout);
  new ResizeObserver(() => {
    const width = Math.max(160, element.clientWidth);
    const picture = svg("svg", { width, height: SMALL.height, viewBox: `0 0 ${width} ${SMALL.height}` }, ...paint(width));
    element.replaceChildren(readout, picture);
    element.dataset.drawn = "yes";
  }).observe(element);
  element.addEventListener("pointermove", (event) => {
    readout.textContent = read(event.clientX - element.getBoundingClientRect().left, element.clientWidth) ?? "";
  });
  element.addEventListener("pointerleave", () => { readout.textContent = ""; });
  return element;
}

/** The frame of a chart: grid lines with labels at the left (and right), labels below, and the axis' title. */
function frame(width, { ticks, rightTicks = [], below, title }) {
  const { height, left, right, top, bottom } = SMALL;
  const edge = width - (rightTicks.length ? 40 : right);
  const y = (share) => height - bottom - share * (height - top - bottom);
  return [
    ...ticks.flatMap(([share, text]) => [
      svg("line", { x1: left, x2: edge, y1: y(share), y2: y(share), class: "grid-line" }),
      svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, text)]),
    ...rightTicks.map(([share, text]) => svg("text", { x: edge + 6, y: y(share) + 4, class: "second" }, text)),
    ...below.map(([share, text], i) => svg("text", { x: left + share * (edge - left), y: height - bottom + 14,
      "text-anchor": i === 0 ? "start" : i === below.length - 1 ? "end" : "middle" }, text)),
    svg("text", { x: (left + edge) / 2, y: height - 2, "text-anchor": "middle", class: "axis-title" }, title),
  ];
}

/** A staircase through values in [0, 1], one step a value. */
function stairs(values, width, edge, attributes) {
  const { height, left, top, bottom } = SMALL;
  const step = (edge - left) / values.length;
  const y = (share) => (height - bottom - share * (height - top - bottom)).toFixed(1);
  const path = values.map((value, i) => `${i ? "L" : "M"}${(left + i * step).toFixed(1)} ${y(value)}H${(left + (i + 1) * step).toFixed(1)}`).join("");
  const closed = `${path}V${height - bottom}H${left}Z`;
  return svg("path", { d: attributes.class === "area" ? closed : path, ...attributes });
}

function profileChart(feature, features) {
  const x = features.positions, { rates, mask } = feature;
  const highest = Math.max(...rates) || 1, most = mask ? Math.max(1, ...mask) : 1;
  const edgeOf = (width) => width - (mask ? 40 : SMALL.right);
  return smallChart(`Firing rate of feature ${feature.f} by position, at most ${percent(highest)}`, (width) => {
    const edge = edgeOf(width), shares = rates.map((rate) => rate / highest);
    return [
      ...frame(width, { ticks: [[0, "0"], [1, percent(highest)]], rightTicks: mask ? [[0, "0"], [1 / most, "1"]] : [],
        below: [[0, String(x[0])], [0.5, String(x[Math.floor(x.length / 2)])], [1, String(x.at(-1))]], title: "position in context" }),
      stairs(shares, width, edge, { class: "area" }), stairs(shares, width, edge, { class: "line trace" }),
      ...(mask ? [stairs(mask.map((weight) => weight / most), width, edge, { class: "dotted trace" })] : []),
    ];
  }, (at, width) => {
    const i = Math.floor(((at - SMALL.left) / (edgeOf(width) - SMALL.left)) * x.length);
    return i in x ? `position ${x[i]}: fires on ${percent(rates[i])} of tokens${mask ? `, mask ${number(mask[i], 2)}` : ""}` : null;
  });
}

/** A histogram of equal steps from `low` to `high`; `unit` is what is counted. */
function histogramChart(label, counts, [low, high], title, unit) {
  const most = Math.max(...counts) || 1, n = counts.length;
  const edgeOf = (width) => width - SMALL.right, at = (share) => (share || low ? significant(low + share * (high - low)) : "0");
  return smallChart(label, (width) => {
    const edge = edgeOf(width), step = (edge - SMALL.left) / n, tall = SMALL.height - SMALL.top - SMALL.bottom;
    return [
      ...frame(width, { ticks: [[0, "0"], [1, most.toLocaleString("en")]], below: [0, 0.5, 1].map((share) => [share, at(share)]), title }),
      ...counts.map((count, i) => svg("rect", { x: (SMALL.left + i * step + 0.5).toFixed(1), width: Math.max(1, step - 1).toFixed(1), class: "bar-mark",
        y: (SMALL.height - SMALL.bottom - (count ? Math.max(1, (tall * count) / most) : 0)).toFixed(1), height: (count ? Math.max(1, (tall * count) / most) : 0).toFixed(1) })),
    ];
  }, (place, width) => {
    const i = Math.floor(((place - SMALL.left) / (edgeOf(width) - SMALL.left)) * n);
    return i >= 0 && i < n ? `${at(i / n)} to ${at((i + 1) / n)}: ${counts[i].toLocaleString("en")} ${unit}` : null;
  });
}
