// The form that answers must have: free text, any JSON object, named fields, or a JSON schema.

import { $, button, h } from "./dom.js";

const STORED = "mlx_vlgen.form";

const KINDS = {
  text: ["Text", "free"],
  json: ["JSON", "any object"],
  fields: ["Fields", "that you name"],
  schema: ["Schema", "a JSON schema"],
};

const TYPES = {
  text: ["Text", { type: "string" }],
  number: ["Number", { type: "number" }],
  whole: ["Whole number", { type: "integer" }],
  yes: ["Yes or no", { type: "boolean" }],
  texts: ["List of texts", { type: "array", items: { type: "string" } }],
  boxes: ["Boxes", {
    type: "array",
    items: {
      type: "object",
      properties: {
        bbox_2d: { type: "array", items: { type: "integer" }, minItems: 4, maxItems: 4 },
        label: { type: "string" },
      },
      required: ["bbox_2d", "label"],
      additionalProperties: false,
    },
  }],
}; // prettier-ignore

let form = { kind: "text", rows: [{ name: "answer", type: "text" }], schema: "" };
form = { ...form, ...JSON.parse(localStorage.getItem(STORED) ?? "{}") };

export function setUpForm() {
  $("kinds").append(...Object.entries(KINDS).map(([kind, [name, meaning]]) => {
    const choose = () => {
      // what the fields say is where a schema begins
      if (kind === "schema" && !form.schema) form.schema = JSON.stringify(schemaOf(form.rows), null, 2);
      change({ kind });
      show();
    };
    const input = h("input", { type: "radio", name: "kind", value: kind, onchange: choose });
    return h("label", {}, input, h("strong", {}, name), h("span", {}, meaning));
  })); // prettier-ignore
  $("add-row").onclick = () => {
    change({ rows: [...form.rows, { name: "", type: "text" }] });
    show();
    $("rows").lastElementChild.querySelector("input").focus();
  };
  $("schema").oninput = () => {
    change({ schema: $("schema").value });
    checkSchema();
  };
  $("open-form").onclick = () => $("form").showModal();
  show();
}

function change(part) {
  form = { ...form, ...part };
  localStorage.setItem(STORED, JSON.stringify(form));
  $("form-name").textContent = KINDS[form.kind][0];
  $("open-form").classList.toggle("on", form.kind !== "text");
}

function show() {
  change({});
  document.querySelector(`#kinds [value=${form.kind}]`).checked = true;
  $("rows-part").hidden = form.kind !== "fields";
  $("schema-part").hidden = form.kind !== "schema";
  $("rows").replaceChildren(...form.rows.map(row));
  $("schema").value = form.schema;
  checkSchema();
}

function row(field, i) {
  const set = (part) => change({ rows: form.rows.map((other, j) => (j === i ? { ...other, ...part } : other)) });
  const name = h("input", { value: field.name, placeholder: "name", "aria-label": "Name of the field", spellcheck: false });
  name.oninput = () => set({ name: name.value.trim() });
  const options = Object.entries(TYPES).map(([type, [label]]) => h("option", { value: type }, label));
  const type = h("select", { "aria-label": "What it holds" }, ...options);
  type.value = field.type;
  type.onchange = () => set({ type: type.value });
  const drop = () => {
    change({ rows: form.rows.filter((_, j) => j !== i) });
    show();
    $("add-row").focus();
  };
  return h("li", {}, name, type, button("close", `Remove ${field.name || "the field"}`, drop));
}

function schemaOf(rows) {
  const named = rows.filter((field) => field.name);
  const properties = Object.fromEntries(named.map(({ name, type }) => [name, TYPES[type][1]]));
  return { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
}

/** What is wrong with the schema's text, or "". */
function schemaTrouble() {
  try {
    const value = JSON.parse(form.schema);
    return value && typeof value === "object" && !Array.isArray(value) ? "" : "A JSON schema is an object: {…}.";
  } catch (error) {
    return `This is not JSON yet: ${error.message}`;
  }
}

function checkSchema() {
  const wrong = form.kind === "schema" ? schemaTrouble() : "";
  $("schema-trouble").textContent = wrong;
  $("schema-trouble").hidden = !wrong;
}

/** `response_format` of a request; undefined for text. Throws Error for a schema that is none. */
export function responseFormat() {
  if (form.kind === "text") return undefined;
  if (form.kind === "json") return { type: "json_object" };
  if (form.kind === "schema" && schemaTrouble()) throw new Error(`${schemaTrouble()} Mend it under “Schema”.`);
  const schema = form.kind === "schema" ? JSON.parse(form.schema) : schemaOf(form.rows);
  return { type: "json_schema", json_schema: { name: "answer", schema } };
}
