// The question as it is written: its text, its pictures and its sounds.

import { $, announce, button, h, urlOf } from "./dom.js";
import { photograph, readFile, refusal } from "./pictures.js";

// By what the model takes beside text: how the page names it, and ideas of what to ask.
const TAKEN = {
  image: { add: "Add pictures", drop: "Drop pictures here", ask: "Ask about a picture", show: "Drop, paste or photograph a picture, and ask about it." },
  audio: { title: "Let it hear something.", add: "Add sounds", drop: "Drop sounds here", ask: "Ask about a sound", show: "Drop a sound, and ask about it." },
  both: { add: "Add pictures or sounds", drop: "Drop pictures or sounds here", ask: "Ask about a picture or a sound", show: "Drop, paste or photograph a picture, or drop a sound, and ask about it." },
  text: { title: "Ask it something.", ask: "Ask something", show: "This model takes text only." },
}; // prettier-ignore

let files = []; // pictures and sounds
let kinds = ["image"]; // of media that the model takes; undefined where nobody knows yet
let editing = null; // the question that is asked again

/** onAsk(question, edited): the question is complete; edited: the one that it replaces, or null. */
export function setUpComposer(onAsk) {
  const text = $("question");
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const pictures = files.filter(({ sound }) => !sound);
    const sounds = files.filter(({ sound }) => sound);
    const question = { role: "user", text: text.value.trim(), pictures, sounds };
    if (!question.text && !files.length) return text.focus();
    const refused = files.map((file) => refusal(file, takes)).find(Boolean);
    if (refused) return trouble(refused);
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

const takes = (kind) => !kinds || kinds.includes(kind);

/** What the chosen model takes. */
export function showKinds(given) {
  kinds = given;
  const taken = TAKEN[takes("image") ? (takes("audio") ? "both" : "image") : takes("audio") ? "audio" : "text"];
  $("add").hidden = !taken.add;
  $("add").ariaLabel = $("add").title = taken.add ?? "";
  $("add").firstElementChild.firstElementChild.setAttribute("href", takes("image") ? "#i-image" : "#i-sound");
  $("files").accept = [takes("image") && "image/*,.heic,.heif", takes("audio") && "audio/*,.flac,.opus"].filter(Boolean).join();
  $("photograph").hidden = !takes("image");
  $("drop").firstElementChild.textContent = taken.drop ?? taken.show;
  $("question").placeholder = taken.ask;
  $("show-title").textContent = taken.title ?? "Show it something.";
  $("show").textContent = taken.show;
}

async function addFiles(given) {
  trouble("");
  const read = await Promise.allSettled([...given].map((file) => readFile(file, takes)));
  const added = read.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const refused = read.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
  files = [...files, ...added];
  if (refused.length) trouble(refused.join(" "));
  if (added.length) announce(`Added: ${added.map(({ name, sound }) => `${sound ? "sound" : "picture"} ${name}`).join(", ")}`);
  show();
  $("question").focus();
}

export function isEmpty() {
  return !$("question").value && !files.length;
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
  files = [...question.pictures, ...(question.sounds ?? [])];
  show();
  suggest(question.text);
}

export function clear() {
  editing = null;
  files = [];
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
  $("pictures").hidden = !files.length;
  $("pictures").replaceChildren(...files.map((file) => {
    const drop = () => {
      files = files.filter((other) => other !== file);
      show();
      $("question").focus();
    };
    return h("li", {}, file.sound ? soundView(file) : thumbnail(file), button("close", `Remove ${file.name}`, drop));
  })); // prettier-ignore
}

/** A picture, or its name where the browser cannot show it. */
export function thumbnail({ blob, name, width }) {
  return width ? h("img", { src: urlOf(blob), alt: name, title: name }) : h("span", { className: "file" }, name);
}

/** A sound, to be heard, with its name. */
export function soundView({ blob, name }) {
  const player = h("audio", { controls: true, preload: "metadata", src: urlOf(blob), "aria-label": name });
  return h("figure", { className: "sound" }, h("figcaption", { title: name }, name), player);
}

// Browsers without `field-sizing` in CSS
function grow() {
  const text = $("question");
  if (CSS.supports("field-sizing", "content")) return;
  text.rows = Math.min(8, text.value.split("\n").length);
}
