// Questions and answers as they are shown.

import { soundView, thumbnail } from "./composer.js";
import { $, button, h, urlOf } from "./dom.js";
import { codeBlock, showMarkdown } from "./markdown.js";
import { markedPicture } from "./marks.js";

export function questionView(question, { onEdit }) {
  const pictures = question.pictures.map((picture) =>
    picture.width
      ? h("button", { type: "button", className: "picture", "aria-label": `Show ${picture.name}`, onclick: () => view(picture) }, thumbnail(picture))
      : thumbnail(picture),
  ); // prettier-ignore
  return h("article", { className: "question", "aria-label": "You" },
    pictures.length > 0 && h("div", { className: "pictures" }, ...pictures),
    ...(question.sounds ?? []).map(soundView),
    h("div", { className: "said" },
      h("div", { className: "actions" }, button("edit", "Edit and ask again", onEdit)),
      question.text && h("p", {}, question.text))); // prettier-ignore
}

function view({ blob, name }) {
  $("viewed").src = urlOf(blob);
  $("viewed").alt = name;
  $("viewer").showModal();
}

/** {node, update}: update() shows what has become of the answer. pictures: that the question came with. */
export function answerView(answer, pictures, { onAgain }) {
  const thoughts = h("div", { className: "thoughts" });
  const thinkingLabel = h("span");
  const thinking = h("details", { className: "thinking" }, h("summary", {}, thinkingLabel), thoughts);
  const body = h("div", { className: "text" });
  const marked = h("div");
  const end = h("div");
  const figures = h("p", { className: "figures" });
  const copy = button("copy", "Copy the answer", () => navigator.clipboard.writeText(answer.text));
  const actions = h("div", { className: "actions" }, navigator.clipboard && copy, button("again", "Ask again", onAgain));
  const node = h("article", { className: "answer", "aria-label": answer.model || "Answer" },
    thinking, marked, body, end, h("footer", {}, figures, actions)); // prettier-ignore

  let drawn = null;
  function update() {
    const running = answer.state === "running";
    node.classList.toggle("running", running);
    node.classList.toggle("waiting", running && !answer.text && !answer.thinking);
    node.setAttribute("aria-busy", running);
    thinking.hidden = !answer.thinking;
    thinkingLabel.textContent = running && !answer.text ? "Thinking…" : "What it thought";
    showMarkdown(thoughts, answer.thinking);
    if (answer.form && answer.text) body.replaceChildren(codeBlock(pretty(answer.text), "json"));
    else showMarkdown(body, answer.text);
    figures.textContent = describe(answer.figures);
    actions.hidden = running || (answer.state === "failed" && !answer.text); // that has its button
    end.replaceChildren(...ending(answer, onAgain));
    if (answer.marks !== drawn) marked.replaceChildren(...drawings(pictures, answer.marks));
    drawn = answer.marks;
  }
  update();
  return { node, update };
}

/** A mark belongs to the picture that the answer names, or else to the first, as in `--boxes`. */
function drawings(pictures, marks) {
  const shown = pictures.map((picture, i) => {
    const drawn = (marks?.[i] ?? []).filter((mark) => i === 0 || "picture" in mark);
    return picture.width && drawn.length && markedPicture(picture, drawn);
  });
  return shown.filter(Boolean);
}

function ending({ state, error, text }, onAgain) {
  if (state === "failed") {
    const left = text ? "" : " A question that comes next is asked without this one.";
    const again = button("again", "Try again", onAgain, { shown: true, className: "quiet" });
    return [h("div", { className: "note bad", role: "alert" }, h("strong", {}, error.message), h("p", {}, error.remedy, left), again)];
  }
  if (state === "stopped") return [h("p", { className: "fine" }, "Stopped.")];
  if (state === "length") return [h("p", { className: "note" }, "Cut off: the answer was as long as it may be. Raise “Longest answer” in the settings, or ask it to go on.")];
  return [];
}

/** JSON with its indents, short lists of numbers on one line; other text, as a part of JSON, as it is. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2).replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`);
  } catch {
    return text;
  }
}

const SHORTEST = 20; // milliseconds: what came in less came at once, which tells no speed

function describe(figures) {
  if (!figures?.first) return "";
  const about = figures.estimated ? "≈ " : "";
  const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 1)} s`;
  const parts = [`${about}${figures.tokens} tokens`, `first after ${seconds(figures.first)}`];
  if (figures.tokens > 1 && figures.last > figures.first + SHORTEST) {
    parts.splice(1, 0, `${about}${((figures.tokens - 1) / ((figures.last - figures.first) / 1000)).toFixed(1)} tokens/s`);
  }
  if (figures.prompt) parts.push(`prompt of ${figures.prompt}${figures.cached ? `, ${figures.cached} reused` : ""}`);
  return parts.join(" · ");
}
