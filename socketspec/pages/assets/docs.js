// The schema page. What the schema says goes into the page as text, never as markup.
"use strict";

const here = document.body.dataset.here;
const MAX_DEPTH = 6;  // levels of nested models shown; models may contain themselves
const $ = (id) => document.getElementById(id);

// The token lives in this variable only: not in the address bar, the history or any storage.
let token = takeToken();

function takeToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given !== null) {
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
  }
  return given || "";
}

function credentials() {
  if (!token) return {};
  // Header values are bytes: a token beyond ASCII is sent as UTF-8.
  return { authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}` };
}

async function load() {
  $("problem").hidden = true;
  try {
    const response = await fetch(`${here}/schema`, { headers: credentials(), cache: "no-store", credentials: "omit" });
    if (response.status === 401) {
      ask(token ? "This token is not accepted." : "");
      return;
    }
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    $("access").hidden = true;
    render(await response.json());
  } catch (error) {
    $("loading").hidden = true;
    complain(`The schema could not be loaded: ${error.message}.`);
  }
}

function ask(problem) {
  $("loading").hidden = true;
  $("access").hidden = false;
  if (problem) complain(problem);
  $("token").focus();
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

// --- building blocks

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function table(headings, rows) {
  const head = element("tr", "", ...headings.map((text) => {
    const cell = element("th", "", text);
    cell.scope = "col";
    return cell;
  }));
  const body = rows.map((cells) => element("tr", "", ...cells.map((cell) => element("td", "", cell))));
  const made = element("table", "", element("thead", "", head), element("tbody", "", ...body));
  return element("div", "scroll", made);
}

// Text in which `backticks` mark code.
function prose(text) {
  const parts = text.split("`");
  const closed = parts.length % 2 === 1;
  return element("span", "", ...(closed ? parts.map((part, index) => (index % 2 ? element("code", "", part) : part)) : [text]));
}

function json(value) {
  return element("pre", "", JSON.stringify(value, null, 2));
}

// --- JSON Schema

function resolve(schema, root) {
  let found = schema;
  for (let hops = 0; found && found.$ref && hops < 20; hops += 1) {
    const { $ref, ...rest } = found;
    const target = $ref.split("/").slice(1).reduce(
      (node, key) => (node === undefined ? undefined : node[key.replaceAll("~1", "/").replaceAll("~0", "~")]), root);
    found = { ...target, ...rest };
  }
  return found === true || found === undefined || found === null ? {} : found;
}

function typeName(given, root, depth = 0) {
  const schema = resolve(given, root);
  if (depth > MAX_DEPTH) return "…";
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return [...new Set(choices.map((choice) => typeName(choice, root, depth + 1)))].join(" | ");
  if (schema.allOf) return schema.allOf.map((part) => typeName(part, root, depth + 1)).join(" & ");
  if (schema.type === "array") {
    if (schema.prefixItems) return `[${schema.prefixItems.map((item) => typeName(item, root, depth + 1)).join(", ")}]`;
    const item = typeName(schema.items, root, depth + 1);
    return item.includes(" | ") ? `(${item})[]` : `${item}[]`;
  }
  if (schema.type === "object") {
    if (schema.properties) return schema.title || "object";
    const values = schema.additionalProperties;
    return values && typeof values === "object" ? `{string: ${typeName(values, root, depth + 1)}}` : "object";
  }
  const base = Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any";
  return schema.format ? `${base} (${schema.format})` : base;
}

const BOUNDS = {
  minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", multipleOf: "multiple of",
  minLength: "length ≥", maxLength: "length ≤", minItems: "items ≥", maxItems: "items ≤", pattern: "matches",
};

function bounds(schema, root) {
  const parts = [schema, ...(schema.anyOf || []).map((choice) => resolve(choice, root))];
  const found = [];
  for (const part of parts) {
    for (const [key, words] of Object.entries(BOUNDS)) {
      if (key in part) found.push(`${words} ${part[key]}`);
    }
  }
  if ("default" in schema) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}

// The models inside a field, to show their fields below it.
function inner(given, root) {
  const schema = resolve(given, root);
  if (schema.properties) return [schema];
  const parts = [...(schema.anyOf || []), ...(schema.oneOf || []), ...(schema.allOf || []), ...(schema.prefixItems || [])];
  if (schema.items) parts.push(schema.items);
  if (schema.additionalProperties && typeof schema.additionalProperties === "object") {
    parts.push(schema.additionalProperties);
  }
  return parts.flatMap((part) => inner(part, root));
}

function fieldRows(model, root, prefix, above) {
  const rows = [];
  const required = new Set(model.required || []);
  for (const [name, given] of Object.entries(model.properties || {})) {
    const field = resolve(given, root);
    const label = element("code", "", `${prefix}${name}`);
    const names = element("span", "", label);
    if (required.has(name)) {
      const star = element("span", "required", " *");
      star.title = "required";
      names.append(star);
    }
    const about = prose(field.description || "");
    const limits = bounds(field, root);
    if (limits) about.append(element("span", "more mono", limits));
    rows.push([names, element("code", "", typeName(given, root)), about]);
    for (const model of inner(given, root)) {
      const mark = model.title || JSON.stringify(model);
      if (above.length < MAX_DEPTH && !above.includes(mark)) {
        const many = typeName(given, root).endsWith("[]") ? "[]" : "";
        rows.push(...fieldRows(model, root, `${prefix}${name}${many}.`, [...above, mark]));
      }
    }
  }
  return rows;
}

function fields(schema) {
  const root = resolve(schema, schema);
  const rows = fieldRows(root, schema, "", [root.title || ""]);
  if (rows.length) return table(["Field", "Type", "About"], rows);
  return element("p", "", element("code", "", typeName(schema, schema)));
}

const SAMPLES = {
  "date-time": "2026-01-31T12:00:00Z", date: "2026-01-31", uuid: "00000000-0000-4000-8000-000000000000",
  email: "someone@example.com", uri: "https://example.com/",
};

function example(given, root, depth = 0) {
  const schema = resolve(given, root);
  if (depth > MAX_DEPTH) return null;
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if ("default" in schema) return schema.default;
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf || schema.oneOf || schema.allOf;
  if (choices) return example(choices[0], root, depth + 1);
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "array") return schema.items && depth < MAX_DEPTH - 1 ? [example(schema.items, root, depth + 1)] : [];
  if (type === "integer" || type === "number") return schema.minimum ?? (schema.exclusiveMinimum ?? -1) + 1;
  if (type === "boolean") return true;
  if (type === "string") return SAMPLES[schema.format] || "text";
  if (type === "object" || schema.properties) {
    const entries = Object.entries(schema.properties || {});
    return Object.fromEntries(entries.map(([name, field]) => [name, example(field, root, depth + 1)]));
  }
  return null;
}

// --- the page

function eventCard(event) {
  const head = element("div", "head", element("h3", "", event.event));
  if (event.deprecated) head.append(element("span", "badge warn", "deprecated"));
  if (event.ordered) {
    const badge = element("span", "badge", "ordered");
    badge.title = "Handled one after the other for each connection";
    head.append(badge);
  }
  if (event.timeout !== null) head.append(element("span", "badge", `at most ${event.timeout} s`));
  for (const limit of event.rate_limits) {
    const badge = element("span", "badge", `${Number(limit.rate.toPrecision(3))} a second`);
    badge.title = `Up to ${limit.capacity} at once`;
    head.append(badge);
  }
  head.append(...event.tags.map((tag) => element("span", "badge tag", tag)));
  const card = element("article", event.deprecated ? "card deprecated" : "card", head);
  card.id = `event-${event.event}`;
  if (event.description) card.append(element("p", "", prose(event.description)));

  const payload = element("div", "", element("h4", "", "Payload"));
  payload.append(event.payload ? fields(event.payload) : element("p", "quiet", "None."));
  const message = { event: event.event, payload: event.payload ? example(event.payload, event.payload) : {}, id: 1 };
  const sample = element("div", "", element("h4", "", "For example, a client sends"), json(message));
  card.append(element("div", "sides", payload, sample));
  if (event.ack) card.append(element("h4", "", "Answered with ", element("code", "", "__ack__")), fields(event.ack));
  for (const sent of event.emits) card.append(...outgoing("Emits", sent, "to the sender"));
  for (const sent of event.broadcasts) {
    card.append(...outgoing("Broadcasts", sent, sent.room ? `to room ${sent.room}` : "to everybody"));
  }
  for (const error of event.errors) {
    card.append(element("h4", "", "May be refused with ", element("code", "", error.code)), element("p", "quiet", prose(error.meaning)));
    if (error.details) card.append(fields(error.details));
  }
  card.append(rawSchema(event));
  card.dataset.text = JSON.stringify(event).toLowerCase();
  return card;
}

// What the app sends whatever happens: an event with a typed declaration of its own.
function sentCard(event) {
  const card = element("article", "card", element("div", "head", element("h3", "", event.event),
    ...event.tags.map((tag) => element("span", "badge tag", tag))));
  card.append(...outgoing("Sent as", event, event.room ? `to room ${event.room}` : ""));
  card.dataset.text = JSON.stringify(event).toLowerCase();
  return card;
}

function outgoing(word, sent, where) {
  const title = element("h4", "", `${word} `, element("code", "", sent.event), ` ${where}`);
  const parts = [title];
  if (sent.description) parts.push(element("p", "quiet", prose(sent.description)));
  if (sent.payload) parts.push(fields(sent.payload));
  return parts;
}

function rawSchema(event) {
  const box = element("details", "", element("summary", "", "JSON Schema"));
  // Built when it is opened: most are never looked at.
  box.addEventListener("toggle", () => {
    if (box.childElementCount === 1) {
      box.append(json({ payload: event.payload, ack: event.ack, emits: event.emits, broadcasts: event.broadcasts, errors: event.errors }));
    }
  });
  return box;
}

function section(title, ...children) {
  return element("section", "", element("h2", "", title), ...children);
}

function tableSection(title, headings, items, cells) {
  if (!items.length) return [];
  const made = table(headings, items.map(cells));
  made.querySelectorAll("tbody tr").forEach((row, index) => {
    row.dataset.text = JSON.stringify(items[index]).toLowerCase();
  });
  return [section(title, element("div", "panel", made))];
}

function facts(schema) {
  const list = [
    ["namespace", schema.namespace],
    ["subprotocols", schema.subprotocols.join(", ")],
    ["largest message", `${schema.max_payload_size.toLocaleString("en")} bytes`],
    ["authentication", schema.authentication.join(", ") || "none"],
    ["clients may also send", schema.client_events.join(" ")],
  ];
  return list.map(([name, value]) => element("li", "", `${name} `, element("strong", "", value)));
}

function render(schema) {
  document.title = `${schema.title}: events`;
  $("title").textContent = schema.title;
  $("version").textContent = schema.version;
  $("description").textContent = schema.description;
  $("facts").replaceChildren(...facts(schema));
  const groups = new Map();
  for (const event of schema.events) {
    const tag = event.tags[0] || "";
    groups.set(tag, [...(groups.get(tag) || []), event]);
  }
  const tags = [...groups.keys()].sort((a, b) => (a === "") - (b === "") || a.localeCompare(b));
  const untagged = groups.size === 1 ? "Events" : "Other events";
  const content = tags.map((tag) => section(tag || untagged, ...groups.get(tag).map(eventCard)));
  if (!schema.events.length) {
    content.push(element("p", "quiet", "This app has no events yet: declare one with @socket.on."));
  }
  if (schema.sent_events.length) content.push(section("Sent by the app", ...schema.sent_events.map(sentCard)));
  const code = (text) => element("code", "", text);
  content.push(...tableSection("Rooms", ["Room", "About", "Members", "History"], schema.rooms, (room) => [
    code(room.name), prose(room.description), room.max_members === null ? "no limit" : `at most ${room.max_members}`,
    room.history === null ? "none" : `newest ${room.history.size}, kept ${room.history.ttl} s`,
  ]));
  content.push(...tableSection("Errors", ["Code", "Meaning"], schema.errors, (error) => [
    code(error.code), prose(error.meaning),
  ]));
  const closing = ["Code", "Reason", "When", "Connect again?"];
  content.push(...tableSection("Close codes", closing, schema.close_codes, (close) => [
    code(String(close.code)), code(close.reason), prose(close.issued_when), close.reconnect ? "yes" : "no",
  ]));
  $("content").replaceChildren(...content);
  filter();
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let events = 0;
  for (const item of document.querySelectorAll("[data-text]")) {
    item.hidden = !words.every((word) => item.dataset.text.includes(word));
    if (!item.hidden && item.classList.contains("card")) events += 1;
  }
  for (const part of document.querySelectorAll("main section")) {
    const items = part.querySelectorAll("[data-text]");
    part.hidden = items.length > 0 && [...items].every((item) => item.hidden);
  }
  const all = document.querySelectorAll(".card").length;
  $("shown").textContent = words.length ? `${events} of ${all} events` : `${all} event${all === 1 ? "" : "s"}`;
}

$("filter").addEventListener("input", filter);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("token").value = "";
  load();
});
load();
