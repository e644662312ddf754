// Settings of all requests, as the server names them, and what they mean. They stay in this browser.

import { showForget } from "./api.js";
import { $, h } from "./dom.js";

const STORED = "mlx_vlgen.settings";

const FIELDS = [
  { name: "system", label: "Instructions", kind: "text", meaning: "Said to the model before every conversation: who it is, how it should answer." },
  { name: "max_tokens", label: "Longest answer", unit: "tokens", min: 1, step: 1, empty: "no limit", meaning: "Where an answer is cut off. A token is about three quarters of a word." },
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: "any", meaning: "0 always takes the likeliest token, so that the same question has the same answer. Higher values vary more." },
  { name: "top_p", label: "Top-p", min: 0, max: 1, step: "any", meaning: "Draw only from the likeliest tokens that together have this share of the probability." },
  { name: "top_k", label: "Top-k", min: 1, step: 1, meaning: "Draw only from so many of the likeliest tokens." },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: "any", meaning: "Leave out tokens that are less likely than this share of the likeliest." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, step: "any", meaning: "Above 1 makes tokens that were there less likely. 1 changes nothing." },
  { name: "seed", label: "Seed", step: 1, empty: "by chance", meaning: "The same seed draws the same answer again." },
  { name: "stop", label: "Stop at", kind: "lines", meaning: "Texts before which an answer ends, one a line." },
  { name: "enable_thinking", label: "Think first", kind: "flag", meaning: "Models that can think do so before they answer. What they think is folded away." },
  { name: "thinking_budget", label: "Longest thinking", unit: "tokens", min: 0, step: 1, empty: "no limit", meaning: "After so many, a thinking model has to answer." },
  { name: "max_pixels", label: "Largest picture", unit: "pixels", min: 1, step: 1, meaning: "Area to which larger pictures are reduced, width times height. Smaller is faster and sees less." },
]; // prettier-ignore

let values = JSON.parse(localStorage.getItem(STORED) ?? "{}");

export function setUpSettings() {
  $("open-settings").onclick = () => {
    showForget($("forget-key"));
    $("settings").showModal();
  };
  $("reset").onclick = () => {
    change({});
    $("fields").replaceChildren(...FIELDS.map(row));
  };
  $("fields").replaceChildren(...FIELDS.map(row));
}

function row(field) {
  const id = `setting-${field.name}`;
  const hint = `${id}-hint`;
  const shared = { id, "aria-describedby": hint };
  const value = values[field.name] ?? "";
  const label = h("label", { htmlFor: id }, field.label, field.unit && h("span", {}, ` ${field.unit}`));
  let input;
  if (field.kind === "flag") input = h("input", { ...shared, type: "checkbox", checked: Boolean(value) });
  else if (field.kind) input = h("textarea", { ...shared, rows: 2, value });
  else {
    const { min, max, step } = field;
    input = h("input", { ...shared, type: "number", min: min ?? "", max: max ?? "", step, value, placeholder: field.empty ?? "model’s own" });
  }
  input.oninput = () => {
    const given = field.kind === "flag" ? input.checked : input.value;
    if (input.validity.valid) change({ ...values, [field.name]: given });
    input.reportValidity();
  };
  return h("div", { className: `field ${field.kind ?? "number"}` }, label, input, h("p", { id: hint, className: "fine" }, field.meaning));
}

function change(changed) {
  values = Object.fromEntries(Object.entries(changed).filter(([, value]) => value !== "" && value !== false));
  localStorage.setItem(STORED, JSON.stringify(values));
}

/** What a request says of its settings, and the system's instructions, or none. */
export function requestSettings() {
  const { system, ...rest } = values;
  const parameters = {};
  for (const { name, kind } of FIELDS) {
    if (!(name in rest)) continue;
    if (kind === "lines") parameters[name] = rest[name].split("\n").filter(Boolean);
    else parameters[name] = kind ? rest[name] : Number(rest[name]);
  }
  return { system, parameters };
}
