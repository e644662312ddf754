// Elements, made and found. Text always goes in as text nodes: the page's policy refuses HTML from strings.

export const $ = (id) => document.getElementById(id);

/** An element. props: properties where the element has them, else attributes; null and false are left out. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in node) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button with an icon; its label is shown where `shown`, and told to screen readers in any case. */
export function button(name, label, onclick, { shown = false, className = "icon" } = {}) {
  const said = shown ? {} : { "aria-label": label, title: label };
  return h("button", { type: "button", className, onclick, ...said }, icon(name), shown && label);
}

const urls = new WeakMap();

/** A blob's URL, one for as long as the blob is held. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** What screen readers say. */
export function announce(text) {
  $("status").textContent = text;
}
