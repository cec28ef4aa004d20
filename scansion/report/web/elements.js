// Elements from text that may say anything: what is given as text stays text.

/** make("p", {class: "x", onclick: f, hidden: true}, "text", child, ...): an element. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A token as it can be seen: line breaks and tabs as signs, an empty one as a mark. */
function visible(token) {
  return token.replace(/\r?\n|[\r\u2028\u2029\u0085]/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f]/g, "␣") || "∅";
}

/** A token as a word by itself: without the space before it, unless it is nothing but space. */
function word(token) {
  const seen = visible(token);
  return seen.trim() || "␣".repeat(Math.max(1, seen.length));
}

function number(value, digits) {
  return Number.isFinite(value) ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : "–";
}

/** Three digits that mean something, wherever the point is: scales differ from model to model. */
function significant(value) {
  return Number.isFinite(value) ? value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }) : "–";
}

function percent(share) {
  if (!Number.isFinite(share)) return "–";
  if (share === 0) return "0";
  return `${(100 * share).toLocaleString("en", { maximumSignificantDigits: share < 0.1 ? 2 : 3 })}%`;
}

/** Whether the screen is too narrow for two columns; the same width as in style.css. */
function narrow() {
  return matchMedia("(max-width: 820px)").matches;
}
