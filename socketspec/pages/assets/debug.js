// The live event feed of debug=True. What clients sent goes into the page as text, never as markup.
"use strict";

const here = document.body.dataset.here;
const INTERVAL = 1000;
const MAX_ROWS = 1000;
const $ = (id) => document.getElementById(id);

// The token lives in this variable only: not in the address bar, the history or any storage.
let token = takeToken();
let since = 0;
let paused = false;
let known = new Set();   // of the newest events, so that asking anew after a restart shows none twice
const waiting = [];      // arrived while paused

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

async function poll() {
  try {
    const response = await fetch(`${here}/feed?since=${since}`, {
      headers: credentials(), cache: "no-store", credentials: "omit",
    });
    if (response.status === 401) {
      show("offline", "waiting for the access token");
      $("access").hidden = false;
      return;
    }
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    take((await response.json()).events);
    show("live", paused ? `paused, ${waiting.length} waiting` : "live");
  } catch (error) {
    show("offline", `no answer (${error.message}), trying again`);
    since = 0;  // a server that restarted counts from the beginning
  }
  setTimeout(poll, INTERVAL);
}

function take(events) {
  for (const event of events) {
    since = Math.max(since, event.number);
    const id = `${event.number} ${event.time}`;
    if (known.has(id)) continue;
    known.add(id);
    waiting.push(event);
  }
  if (known.size > 4 * MAX_ROWS) known = new Set([...known].slice(-MAX_ROWS));
  waiting.splice(0, waiting.length - MAX_ROWS);
  if (!paused) flush();
}

function flush() {
  const rows = waiting.splice(0).map(row).reverse();
  $("events").prepend(...rows);
  while ($("events").childElementCount > MAX_ROWS) $("events").lastElementChild.remove();
  filter();
}

function row(event) {
  const made = document.createElement("tr");
  const time = new Date(event.time * 1000);
  const stamp = `${time.toLocaleTimeString("en-GB")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
  const cells = [event.number, stamp, event.direction, event.event, event.room, event.connection_id, event.data];
  for (const text of cells) {
    const cell = document.createElement("td");
    cell.textContent = text === null ? "" : String(text);
    made.append(cell);
  }
  made.children[2].className = { in: "in", out: "out", broadcast: "broadcast" }[event.direction] || "";
  made.dataset.text = cells.slice(2).join(" ").toLowerCase();
  return made;
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...$("events").children];
  for (const item of rows) item.hidden = !words.every((word) => item.dataset.text.includes(word));
  const visible = rows.filter((item) => !item.hidden).length;
  $("shown").textContent = words.length ? `${visible} of ${rows.length} events` : `${rows.length} events`;
  $("empty").hidden = rows.length > 0;
}

function show(state, text) {
  if ($("state").textContent === text) return;  // a status that does not change is not read out again
  $("state").dataset.state = state;
  $("state").textContent = text;
}

$("filter").addEventListener("input", filter);
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused) flush();
});
$("clear").addEventListener("click", () => {
  $("events").replaceChildren();
  filter();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("token").value = "";
  $("access").hidden = true;
  poll();
});
poll();
