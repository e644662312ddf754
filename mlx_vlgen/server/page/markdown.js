// The part of Markdown that answers use, as elements: headings, paragraphs, lists, quotes, tables, code, bold, italics.
// All else stays as it was written, links too: what a model writes must not lead anywhere by itself.

import { button, h } from "./dom.js";

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)/;
const ITEM = /^(\s*)(?:[-*+•]|(\d{1,9})[.)])\s+(.*)/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(\S|\S.*?\S)\*\*|(?<![\w*])\*(\S|\S[^*]*?\S)\*(?![\w*])/s;

// What is longer stays plain: a model that repeats a sign for ever must not hold up the page, and the patterns above take
// the square of a length on such.
const LONGEST = 4000;

/** Shows text in a container. While it grows, only the blocks that change are made anew. */
export function showMarkdown(container, text) {
  const blocks = splitBlocks(text);
  blocks.forEach((block, i) => {
    const source = `${block.kind}\n${block.lines.join("\n")}`;
    const old = container.children[i];
    if (old?.source === source) return;
    const node = MAKERS[block.kind](block);
    node.source = source;
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

/** [{kind, lines}], in their order. */
function splitBlocks(text) {
  const blocks = [];
  const lines = text.split("\n");
  const kindOf = (i) => {
    const line = lines[i];
    if (!line.trim()) return "blank";
    if (line.length > LONGEST) return "paragraph";
    if (HEADING.test(line)) return "heading";
    if (RULE.test(line)) return "rule";
    if (ITEM.test(line)) return "list";
    if (/^\s*>/.test(line)) return "quote";
    if (line.includes("|") && DIVIDER.test(lines[i + 1] ?? "")) return "table";
    return "paragraph";
  };
  for (let i = 0; i < lines.length; i++) {
    const fence = lines[i].match(FENCE);
    const last = blocks.at(-1);
    if (fence) {
      const block = { kind: "code", lines: [], language: fence[2] };
      while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) block.lines.push(lines[i]);
      blocks.push(block);
      continue;
    }
    const kind = kindOf(i);
    const continues =
      last?.open &&
      (kind === last.kind
        ? ["list", "quote", "paragraph"].includes(kind)
        : (last.kind === "list" && kind === "paragraph") || (last.kind === "table" && lines[i].includes("|")));
    if (kind === "blank") {
      if (last && !(last.kind === "list" && ITEM.test(lines[i + 1] ?? ""))) last.open = false;
    } else if (continues) last.lines.push(lines[i]);
    else blocks.push({ kind, lines: [lines[i]], open: !["heading", "rule"].includes(kind) });
  }
  return blocks;
}

const MAKERS = {
  paragraph: ({ lines }) => h("p", {}, ...inline(lines.join("\n"))),
  quote: ({ lines }) => h("blockquote", {}, ...inline(lines.map((line) => line.replace(/^\s*> ?/, "")).join("\n"))),
  rule: () => h("hr"),
  code: ({ lines, language }) => codeBlock(lines.join("\n"), language),
  heading({ lines }) {
    const [, marks, text] = lines[0].match(HEADING);
    return h(`h${Math.min(marks.length + 1, 6)}`, {}, ...inline(text)); // h1 is the page's
  },
  table({ lines }) {
    const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
    const row = (tag, line) => h("tr", {}, ...cells(line).map((cell) => h(tag, {}, ...cell)));
    const [head, , ...rest] = lines;
    const body = h("tbody", {}, ...rest.map((line) => row("td", line)));
    return h("div", { className: "table" }, h("table", {}, h("thead", {}, row("th", head)), body));
  },
  list({ lines }) {
    const open = []; // lists inside each other, with their indents
    let top = null;
    for (const line of lines) {
      const item = line.match(ITEM);
      if (!item) {
        open.at(-1).list.lastElementChild.append("\n", ...inline(line.trim()));
        continue;
      }
      const indent = item[1].length;
      while (open.length > 1 && indent < open.at(-1).indent) open.pop();
      if (!open.length || indent > open.at(-1).indent + 1) {
        const list = item[2] ? h("ol", { start: Number(item[2]) }) : h("ul");
        if (open.length) open.at(-1).list.lastElementChild.append(list);
        top ??= list;
        open.push({ indent, list });
      }
      open.at(-1).list.append(h("li", {}, ...inline(item[3])));
    }
    return top;
  },
};

function inline(text) {
  if (text.length > LONGEST) return [text];
  const nodes = [];
  for (let match; (match = text.match(INLINE)); text = text.slice(match.index + match[0].length)) {
    if (match.index) nodes.push(text.slice(0, match.index));
    if (match[2]) nodes.push(h("code", {}, match[2].trim()));
    else if (match[3]) nodes.push(h("strong", {}, ...inline(match[3])));
    else nodes.push(h("em", {}, ...inline(match[4])));
  }
  return text ? [...nodes, text] : nodes;
}

export function codeBlock(text, language = "") {
  // without https the browser has no clipboard for pages
  const copy = navigator.clipboard && button("copy", "Copy", () => navigator.clipboard.writeText(text));
  return h("figure", { className: `code ${language === "json" ? "wrapped" : ""}` },
    h("figcaption", {}, language, copy), h("pre", { tabIndex: 0 }, h("code", {}, text))); // prettier-ignore
}
