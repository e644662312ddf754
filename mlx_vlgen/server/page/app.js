// The page: conversations on the left, one of them in the middle, the question below.

import { findMarks, listModels, stream } from "./api.js";
import { clear, edit, isEmpty, setUpComposer, showKinds, suggest, trouble } from "./composer.js";
import { $, announce, button, h } from "./dom.js";
import { responseFormat, setUpForm } from "./form.js";
import { answerView, questionView } from "./messages.js";
import { dataUrl } from "./pictures.js";
import { requestSettings, setUpSettings } from "./settings.js";
import { readAll, remove, save } from "./store.js";

const IDEAS = {
  image: [
    "Describe this picture.",
    "Read out the text in this picture.",
    "Locate every object. Answer in JSON with bbox_2d and label.",
  ],
  audio: ["What do you hear?", "Write down what is said."],
};

let models = new Map(); // name -> kinds of media that it takes
let conversations = [];
let current = null;
const running = new Map(); // answer -> {controller, conversation}
let views = new Map(); // answer -> its view, of the conversation that is shown

// -- conversations

function begin() {
  current = { title: "", changed: 0, messages: [] };
  clear();
  show();
  $("question").focus();
}

function open(conversation) {
  current = conversation;
  clear();
  show();
  if (matchMedia("(max-width: 800px)").matches) $("side").hidePopover();
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

async function keep(conversation) {
  conversation.changed = Date.now();
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  showList();
  await save(conversation).catch((error) => trouble(`This conversation is not kept: ${error.message}. Delete old ones to make room.`));
}

async function forget(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  for (const { controller, conversation: asked } of running.values()) if (asked === conversation) controller.abort();
  conversations = conversations.filter((other) => other !== conversation);
  await remove(conversation);
  if (conversation === current) begin();
  showList();
}

function showList() {
  conversations.sort((one, other) => other.changed - one.changed);
  $("conversations").replaceChildren(...conversations.map((conversation) => {
    const name = h("button", { className: "name", onclick: () => open(conversation), "aria-current": conversation === current && "true" },
      conversation.title);
    return h("li", {}, name, button("bin", `Delete ${conversation.title}`, () => forget(conversation)));
  })); // prettier-ignore
}

// -- the conversation that is shown

function show() {
  views = new Map();
  let pictures = [];
  $("log").replaceChildren(...current.messages.map((message, i) => {
    if (message.role === "user") {
      if (message.pictures.length) pictures = message.pictures;
      return questionView(message, { onEdit: () => edit(message) });
    }
    const view = answerView(message, pictures, { onAgain: () => ask(current.messages[i - 1], current.messages[i - 1]) });
    views.set(message, view);
    return view.node;
  })); // prettier-ignore
  $("welcome").hidden = current.messages.length > 0;
  $("title").textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} – mlx_vlgen` : "mlx_vlgen";
  showList();
  showRunning();
}

function runOfCurrent() {
  return [...running.values()].find(({ conversation }) => conversation === current);
}

function showRunning() {
  const run = runOfCurrent();
  const focused = [$("send"), $("stop")].includes(document.activeElement);
  $("send").hidden = Boolean(run);
  $("stop").hidden = !run;
  if (focused) $(run ? "stop" : "send").focus();
}

function follow(action) {
  const scroller = $("scroller");
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  action();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

// -- asking

/** Whether the question is on its way. edited: the question that it takes the place of. */
function ask(question, edited = null) {
  if (runOfCurrent()) return false;
  let format;
  try {
    format = responseFormat();
  } catch (error) {
    trouble(error.message);
    return false;
  }
  const { messages } = current;
  if (edited) messages.splice(messages.indexOf(edited));
  const answer = { role: "assistant", text: "", thinking: "", model: $("model").value, form: Boolean(format), state: "running" };
  messages.push(question, answer);
  current.title ||= question.text.slice(0, 80) || [...question.pictures, ...question.sounds][0].name;
  const controller = new AbortController();
  running.set(answer, { controller, conversation: current });
  show();
  $("scroller").scrollTop = $("scroller").scrollHeight;
  announce("Asked");
  complete(current, answer, format, controller.signal);
  return true;
}

/** Fills the answer as it streams, and says how it ended. */
async function complete(conversation, answer, format, signal) {
  const began = performance.now();
  const figures = (answer.figures = { tokens: 0, estimated: true });
  const changed = () => views.get(answer) && follow(views.get(answer).update);
  const { parameters, system } = requestSettings();
  await keep(conversation); // a page that is closed meanwhile has the question
  try {
    const messages = await requestMessages(conversation, system);
    const body = { model: answer.model || undefined, messages, response_format: format, ...parameters };
    let frame = 0;
    for await (const chunk of stream(body, signal)) {
      const [choice] = chunk.choices;
      const delta = choice?.delta ?? {};
      if (delta.content || delta.reasoning_content) {
        figures.last = performance.now() - began;
        figures.first ??= figures.last;
        figures.tokens += 1; // about one a chunk; the end tells
        answer.text += delta.content ?? "";
        answer.thinking += delta.reasoning_content ?? "";
      }
      if (choice?.finish_reason) answer.state = choice.finish_reason === "length" ? "length" : "done";
      if (chunk.usage) takeUsage(figures, chunk.usage);
      if (answer.state === "running") frame ||= requestAnimationFrame(() => { frame = 0; changed(); }); // prettier-ignore
    }
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) answer.error = { message: error.message, remedy: error.remedy ?? "Try again." };
  }
  running.delete(answer);
  if (signal.aborted && !conversations.includes(conversation)) return; // it was deleted
  if (answer.state !== "failed") await mark(conversation, answer, parameters.max_pixels);
  changed();
  showRunning();
  if (!models.get(answer.model)) await showModels(); // it is loaded now
  announce(answer.state === "failed" ? "" : `Answer: ${answer.text.slice(0, 2000)}`);
  await keep(conversation);
}

function takeUsage(figures, usage) {
  figures.tokens = usage.completion_tokens;
  figures.prompt = usage.prompt_tokens;
  figures.cached = usage.prompt_tokens_details.cached_tokens;
  figures.estimated = false;
}

/** The conversation as the server takes it. A question that has no answer is left out, but for the last. */
async function requestMessages({ messages }, system) {
  const sent = system ? [{ role: "system", content: system }] : [];
  for (let i = 0; i < messages.length; i += 2) {
    const [question, answer] = [messages[i], messages[i + 1]];
    const last = i + 2 >= messages.length;
    if (!last && !answer.text) continue;
    const urls = await Promise.all(question.pictures.map(({ blob }) => dataUrl(blob)));
    const content = urls.map((url) => ({ type: "image_url", image_url: { url } }));
    for (const { blob, name } of question.sounds ?? []) {
      const data = (await dataUrl(blob)).split(",")[1];
      content.push({ type: "input_audio", input_audio: { data, format: /\w*$/.exec(name)[0].toLowerCase() || "wav" } });
    }
    if (question.text) content.push({ type: "text", text: question.text });
    sent.push({ role: "user", content });
    if (!last) sent.push({ role: "assistant", content: answer.text });
  }
  return sent;
}

/** Looks for places in the answer, where there is a picture for them. */
async function mark(conversation, answer, max_pixels) {
  const before = conversation.messages.slice(0, conversation.messages.indexOf(answer));
  const sent = before.filter(({ pictures }, i) => pictures && (i === before.length - 1 || before[i + 1].text));
  const asked = sent.findLast(({ pictures }) => pictures.length);
  if (!asked || !/\d/.test(answer.text) || answer.text.length > 100_000) return;
  // The number that an answer gives a picture counts all that were sent.
  const sizes = sent.flatMap(({ pictures }) => pictures.map(({ width, height }) => [width || 1, height || 1]));
  const first = sent.slice(0, sent.indexOf(asked)).reduce((count, { pictures }) => count + pictures.length, 0);
  try {
    const marks = await findMarks({ model: answer.model || undefined, text: answer.text, sizes, max_pixels });
    answer.marks = marks.slice(first, first + asked.pictures.length);
  } catch {
    answer.marks = null; // the answer itself is there
  }
}

// -- the beginning

async function showModels() {
  const chosen = localStorage.getItem("mlx_vlgen.model");
  try {
    models = await listModels();
    const names = [...models.keys()];
    $("model").replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) $("model").value = chosen;
    $("model").disabled = names.length < 2;
    showChosen();
  } catch (error) {
    trouble(`${error.message} ${error.remedy}`);
  }
}

/** What the chosen model takes, and ideas of what to ask it. */
function showChosen() {
  const kinds = models.get($("model").value);
  showKinds(kinds);
  const ideas = (kinds ?? ["image"]).flatMap((kind) => IDEAS[kind] ?? []);
  $("ideas").replaceChildren(...ideas.map((idea) => h("button", { type: "button", onclick: () => suggest(idea) }, idea)));
}

setUpComposer(ask);
setUpSettings();
setUpForm();
$("new").onclick = () => {
  begin();
  if (matchMedia("(max-width: 800px)").matches) $("side").hidePopover();
};
$("stop").onclick = () => runOfCurrent()?.controller.abort();
$("model").onchange = () => {
  localStorage.setItem("mlx_vlgen.model", $("model").value);
  showChosen();
};
$("viewer-close").onclick = () => $("viewer").close();
document.addEventListener("visibilitychange", () => {
  // perhaps for good, as a phone does it: what has come of answers is kept
  if (document.hidden) for (const { conversation } of running.values()) save(conversation).catch(() => {});
});
addEventListener("pagehide", () => {
  for (const { controller } of running.values()) controller.abort();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open], :popover-open")) runOfCurrent()?.controller.abort();
});

begin();
showModels();
const read = await readAll();
for (const { messages } of read) {
  for (const message of messages) if (message.state === "running") message.state = "stopped"; // the page was closed
}
conversations.push(...read); // behind what was asked meanwhile
if (read.length && !current.messages.length && isEmpty()) open(read[0]);
else showList();
