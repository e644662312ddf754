// The server's interface: chat completions as they stream, what it serves, and the marks in an answer.

import { $ } from "./dom.js";

/** What went wrong, as the server or the browser says it. remedy: what to do. */
export class Failure extends Error {
  constructor(message, remedy) {
    super(message);
    this.remedy = remedy;
  }
}

const KEY = "mlx_vlgen.key";
let asking = null;

const storedKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

/** Offers to forget the key, where there is one. */
export function showForget(link) {
  link.hidden = !storedKey();
  link.onclick = () => {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    link.hidden = true;
  };
}

/** Asks for a key, once however many requests want one. Whether it was given. */
function askKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-title").textContent = wrong ? "The server refuses this key" : "This server wants a key";
    $("key-text").value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      const given = dialog.returnValue === "use";
      if (given) {
        sessionStorage.setItem(KEY, $("key-text").value.trim());
        if ($("key-keep").checked) localStorage.setItem(KEY, $("key-text").value.trim());
        else localStorage.removeItem(KEY);
      }
      $("key-text").value = "";
      resolve(given);
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.showModal();
  });
  return asking;
}

async function send(path, body, signal) {
  const text = body && JSON.stringify(body);
  for (;;) {
    const key = storedKey();
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: text, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      const large = text?.length > 32 << 20;
      const hint = large ? "Send fewer or smaller files: this may be more than it takes. Or see" : "See";
      throw new Failure("The server does not answer.", `${hint} whether it still runs, then try again.`);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await failureOf(response);
    if (!(await askKey(Boolean(key)))) throw new Failure("The server wants a key.", "Try again, and give it the key.");
  }
}

async function failureOf(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // a proxy's page, for example
  }
  return new Failure(message, remedyFor(response.status, response.headers.get("Retry-After")));
}

function remedyFor(status, seconds) {
  if (status === 503 || status === 429) return `Try again in ${seconds ?? "a few"} seconds: others are before you.`;
  if (status === 413) return "Send fewer or smaller files, or begin a new conversation.";
  if (status === 404) return "Choose another model above.";
  if (status === 504 || status === 408) return "Try again; ask for a shorter answer, or begin a new conversation.";
  if (status >= 500) return "Try again; if it happens twice, the server's log says more.";
  return "Change what it names, in the settings, the form or the question, and try again.";
}

/** The kinds of media that each model takes, by its name; undefined where it was not loaded yet. */
export async function listModels() {
  const { data } = await (await send("v1/models")).json();
  return new Map(data.map((model) => [model.id, model.input_modalities]));
}

/** What the answer's text names, for pictures of these sizes: a list of marks a picture. */
export async function findMarks(body) {
  return (await (await send("v1/marks", body)).json()).marks;
}

/** Chunks of an answer, as they come. Throws Failure, or what fetch throws when the signal aborts. */
export async function* stream(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await send("v1/chat/completions", { ...body, ...options }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Failure("The answer broke off: the server went away.", "See whether it still runs, then try again.");
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: ")) continue; // a sign of life
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Failure(chunk.error.message, remedyFor(chunk.error.code === "timeout" ? 504 : 500));
      yield chunk;
    }
  }
}
