// The question as it is written: its text and its pictures.

import { $, announce, button, h, urlOf } from "./dom.js";
import { photograph, readPicture } from "./pictures.js";

let pictures = [];
let editing = null; // the question that is asked again

/** onAsk(question, edited): the question is complete; edited: the one that it replaces, or null. */
export function setUpComposer(onAsk) {
  const text = $("question");
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const question = { role: "user", text: text.value.trim(), pictures };
    if (!question.text && !pictures.length) return text.focus();
    if (onAsk(question, editing)) clear();
  };
  text.onkeydown = (event) => {
    // Enter also ends a word in Chinese or Japanese input
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  };
  text.oninput = () => {
    trouble("");
    grow();
  };
  $("add").onclick = () => $("files").click();
  for (const id of ["files", "shot"]) {
    $(id).onchange = () => {
      addFiles($(id).files);
      $(id).value = ""; // the same file may come again
    };
  }
  $("photograph").onclick = () =>
    photograph().then(
      (file) => file && addFiles([file]),
      () => trouble("There is no camera that this page may use. Allow it in the browser's settings, or add a file."),
    );
  $("cancel-edit").onclick = clear;
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    addFiles(event.clipboardData.files);
  });
  setUpDrop();
}

function setUpDrop() {
  const over = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (!over(event)) return;
    event.preventDefault();
    addFiles(event.dataTransfer.files);
  });
}

async function addFiles(files) {
  trouble("");
  const read = await Promise.allSettled([...files].map(readPicture));
  const added = read.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const refused = read.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
  pictures = [...pictures, ...added];
  if (refused.length) trouble(`${refused.join(" ")} PNG, JPEG, WebP, GIF and HEIC can be sent.`);
  if (added.length) announce(`${added.length === 1 ? "A picture" : `${added.length} pictures`} added`);
  show();
  $("question").focus();
}

export function isEmpty() {
  return !$("question").value && !pictures.length;
}

/** Puts text in, as an idea of what to ask. */
export function suggest(text) {
  $("question").value = text;
  grow();
  $("question").focus();
}

/** Puts an asked question in, to be asked again. */
export function edit(question) {
  editing = question;
  pictures = [...question.pictures];
  show();
  suggest(question.text);
}

export function clear() {
  editing = null;
  pictures = [];
  trouble("");
  show();
  suggest("");
}

export function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function show() {
  $("editing").hidden = !editing;
  $("pictures").hidden = !pictures.length;
  $("pictures").replaceChildren(...pictures.map((picture) => {
    const drop = () => {
      pictures = pictures.filter((other) => other !== picture);
      show();
      $("question").focus();
    };
    return h("li", {}, thumbnail(picture), button("close", `Remove ${picture.name}`, drop));
  })); // prettier-ignore
}

/** A picture, or its name where the browser cannot show it. */
export function thumbnail({ blob, name, width }) {
  return width ? h("img", { src: urlOf(blob), alt: name, title: name }) : h("span", { className: "file" }, name);
}

// Browsers without `field-sizing` in CSS
function grow() {
  const text = $("question");
  if (CSS.supports("field-sizing", "content")) return;
  text.rows = Math.min(8, text.value.split("\n").length);
}
