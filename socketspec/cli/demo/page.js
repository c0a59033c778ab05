// The demo's client, in plain JavaScript: connects, answers heartbeats, reconnects with jittered back-off, and
// resumes its room where the connection broke. Everything people wrote goes into the page as text, never as markup.
"use strict";

const SUBPROTOCOL = "socketspec.v1.json";
const FIRST_ROOMS = ["lobby", "random", "help"];
const ROOM = /^[a-z0-9][a-z0-9-]{0,29}$/;
const MAX_SHOWN = 500;      // lines kept in the page
const MAX_PENDING = 50;     // messages that wait for a connection
const MAX_BACKOFF = 15000;  // milliseconds
const STABLE_AFTER = 5000;  // a connection this old has shown that it works: the back-off starts anew
const TYPING_EVERY = 2000;
const TYPING_LASTS = 3500;
const FINAL = new Set([1003, 1008, 4000, 4001, 4005, 4007, 4008, 4009]);  // the server does not want us back

const $ = (id) => document.getElementById(id);

const me = { name: storedName() };
const room = { name: "", joined: false, position: null, seen: new Set() };
const pending = new Map();  // key → {room, text, line}: said, not yet confirmed
const typists = new Map();  // name → timer
let socket = null;
let attempts = 0;
let timer = 0;
let heartbeat = null;       // how often the server is heard at least, in milliseconds
let watchdog = 0;
let lastTyping = 0;
let ports = [];             // where the demo's nodes are, if there are several
let delayAsked = 0;         // the delay a stopping server asked for

// --- the connection

function connect() {
  clearTimeout(timer);
  show("connecting", "connecting…");
  const url = new URL("ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  url.search = new URLSearchParams({ name: me.name }).toString();
  const ws = socket = new WebSocket(url, [SUBPROTOCOL]);
  let openedAt = 0;
  ws.addEventListener("open", () => { openedAt = Date.now(); });
  ws.addEventListener("message", (message) => {
    if (ws !== socket) return;
    watch(ws);
    receive(JSON.parse(message.data));
  });
  ws.addEventListener("close", (event) => {
    if (ws !== socket) return;  // replaced on purpose
    lost(event, openedAt);
  });
}

function lost(event, openedAt) {
  clearTimeout(watchdog);
  room.joined = false;
  forgetTypists();
  if (FINAL.has(event.code)) {
    show("stopped", `closed by the server: ${event.reason || event.code}`);
    return;
  }
  if (openedAt && Date.now() - openedAt > STABLE_AFTER) attempts = 0;
  // Full jitter: clients that lost the same server do not come back in step.
  const ceiling = Math.min(MAX_BACKOFF, 500 * 2 ** attempts);
  const delay = delayAsked || 100 + Math.random() * ceiling;
  delayAsked = 0;
  attempts += 1;
  show("offline", `connection lost, trying again in ${Math.max(1, Math.round(delay / 1000))} s`);
  timer = setTimeout(connect, delay);
}

// A dead network closes nothing: when even the heartbeats stop, the connection is given up here.
function watch(ws) {
  clearTimeout(watchdog);
  if (heartbeat) {
    watchdog = setTimeout(() => {
      if (ws !== socket) return;
      socket = null;
      ws.close();
      lost({ code: 1006, reason: "" }, Date.now());
    }, heartbeat);
  }
}

function send(event, payload, id) {
  if (socket === null || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(id === undefined ? { event, payload } : { event, payload, id }));
  return true;
}

function receive(message) {
  const handler = handlers[message.event];
  if (handler) handler(message.payload, message);
}

const handlers = {
  __connect__(payload) {
    const beat = payload.heartbeat;
    heartbeat = beat && !beat.frames ? (beat.interval + beat.timeout + 5) * 1000 : null;
    watch(socket);
    showNode(payload.node);
    if (room.position !== null) {
      const { offset, epoch, tag } = room.position;
      const rooms = { [`chat:${room.name}`]: { offset, epoch, tag }, [`live:${room.name}`]: null };
      send("__resume__", { rooms }, `resume ${room.name}`);
    } else {
      join();
    }
  },
  __ping__() { send("__pong__", {}); },
  __server_shutdown__(payload) { delayAsked = payload.reconnect_in * 1000; },
  __resume__(payload, message) {
    const outcome = payload.rooms[`chat:${room.name}`];
    // Without an id it says that something is lost after all, in the midst of a long replay.
    if (!outcome || (message.id !== undefined && message.id !== `resume ${room.name}`)) return;
    if (!outcome.recovered) {
      notice("The server no longer has all that was said meanwhile: something may be missing here.", "warning");
      room.position = null;
      join();
      return;
    }
    // What was missed follows this answer as ordinary messages.
    entered();
    notice(outcome.replayed ? `Reconnected; ${outcome.replayed} missed message(s) follow.` : "Reconnected; nothing missed.");
  },
  __ack__(payload, message) {
    if (message.id === `join ${room.name}`) {
      for (const kept of payload.history) {
        showMessage(kept.message, kept);
      }
      entered();
    } else if (typeof message.id === "string" && message.id.startsWith("say ")) {
      confirmed(message.id.slice(4));
    }
  },
  __error__(payload, message) {
    const key = typeof message.id === "string" && message.id.startsWith("say ") ? message.id.slice(4) : null;
    const wait = payload.details && payload.details.retry_after;
    if (key !== null) confirmed(key);
    if (wait) setTimeout(() => (room.joined ? sendPending() : join()), wait * 1000 + Math.random() * 500);
    notice(wait ? `${payload.message} Slow down a little.` : payload.message, "warning");
  },
  message(payload, message) {
    if (payload.room === room.name) showMessage(payload, message);
  },
  presence(payload) {
    if (payload.room !== room.name) return;
    $("count").textContent = String(payload.count);
    const rows = payload.names.map((name) => element("li", {}, name === me.name ? `${name} (you)` : name));
    if (payload.count > payload.names.length) {
      rows.push(element("li", {}, `and ${payload.count - payload.names.length} more`));
    }
    $("people").replaceChildren(...rows);
    if (payload.joined !== null) notice(`${payload.joined} came in`);
    if (payload.left !== null) {
      forgetTypist(payload.left);
      notice(`${payload.left} left`);
    }
  },
  typing(payload) {
    if (payload.room !== room.name) return;
    clearTimeout(typists.get(payload.name));
    typists.set(payload.name, setTimeout(() => forgetTypist(payload.name), TYPING_LASTS));
    showTypists();
  },
};

// --- rooms

function enter(name) {
  if (!ROOM.test(name) || (name === room.name && room.joined)) return;
  if (room.name) send("leave", { room: room.name });
  Object.assign(room, { name, joined: false, position: null, seen: new Set() });
  forgetTypists();
  history.replaceState(null, "", `#${name}`);
  $("log").replaceChildren();
  $("people").replaceChildren();
  $("count").textContent = "–";
  $("chat-title").textContent = `# ${name}`;
  for (const item of pending.values()) {
    if (item.room === name) append(item.line, Infinity);
  }
  showRooms(name);
  join();
}

function join() {
  send("join", { room: room.name }, `join ${room.name}`);
}

function entered() {
  room.joined = true;
  show("online", "connected");
  sendPending();
}

// Sending again is safe: the server says a message once for each key.
function sendPending() {
  for (const [key, item] of pending) {
    if (item.room === room.name) send("say", { room: item.room, text: item.text, key }, `say ${key}`);
  }
}

function showRooms(current) {
  const names = new Set([...$("rooms").querySelectorAll("button")].map((button) => button.textContent.slice(2)));
  for (const name of [...FIRST_ROOMS, current]) {
    if (names.has(name)) continue;
    const button = element("button", { type: "button" }, `# ${name}`);
    button.addEventListener("click", () => enter(name));
    const item = element("li", {});
    item.append(button);
    $("rooms").append(item);
    names.add(name);
  }
  for (const button of $("rooms").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(button.textContent === `# ${current}`));
  }
}

// --- messages

function showMessage(message, position) {
  // The same message may come twice: live, and in the history that `join` returns. It is shown once.
  const id = `${position.epoch}/${position.offset}`;
  if (position.offset !== undefined) {
    if (room.seen.has(id)) return;
    room.seen.add(id);
    const last = room.position;
    if (last === null || last.epoch !== position.epoch || last.offset < position.offset) {
      room.position = { offset: position.offset, epoch: position.epoch, tag: position.tag };
    }
  }
  forgetTypist(message.name);
  append(messageLine(message.name, message.text, new Date(message.at * 1000)), message.at);
}

function messageLine(name, text, at) {
  const line = element("li", { className: name === me.name ? "mine" : "" });
  const meta = element("span", { className: "meta" });
  const time = element("time", { dateTime: at.toISOString() }, at.toLocaleTimeString([], { timeStyle: "short" }));
  meta.append(element("strong", {}, name), " ", time);
  line.append(meta, element("span", { className: "text", dir: "auto" }, text));
  return line;
}

function notice(text, kind = "notice") {
  append(element("li", { className: kind }, text), Date.now() / 1000);
}

// Lines stand in the order of the server's clock; what is still on its way stands last.
function append(line, at) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  line.at = at;
  let before = null;
  for (let other = log.lastElementChild; other !== null && other.at > at; other = other.previousElementSibling) {
    before = other;
  }
  log.insertBefore(line, before);
  while (log.childElementCount > MAX_SHOWN) log.firstElementChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function say(text) {
  if (pending.size >= MAX_PENDING) {
    notice("Too much is waiting for the connection; try again when it is back.", "warning");
    return false;
  }
  const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const line = messageLine(me.name, text, new Date());
  line.classList.add("pending");
  line.querySelector("time").textContent = "sending…";
  pending.set(key, { room: room.name, text, line });
  append(line, Infinity);
  $("log").scrollTop = $("log").scrollHeight;
  if (room.joined) send("say", { room: room.name, text, key }, `say ${key}`);
  return true;
}

function confirmed(key) {
  const item = pending.get(key);
  if (item === undefined) return;
  item.line.remove();
  pending.delete(key);
}

// --- typing

function forgetTypist(name) {
  clearTimeout(typists.get(name));
  if (typists.delete(name)) showTypists();
}

function forgetTypists() {
  for (const name of [...typists.keys()]) forgetTypist(name);
}

function showTypists() {
  const names = [...typists.keys()];
  const shown = names.length > 3 ? "Several people" : names.join(", ");
  $("typing").textContent = names.length ? `${shown} ${names.length === 1 ? "is" : "are"} typing…` : "";
}

// --- the page

function element(tag, properties, text) {
  const node = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) node.textContent = text;
  return node;
}

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
}

// Which node this tab is on, and links to the others: what is said there is heard here.
function showNode(name) {
  const here = ports.findIndex((port) => String(port) === location.port);
  if (ports.length < 2 || here < 0) return;
  const parts = [`on node ${here + 1} of ${ports.length} (${name}); open `];
  for (const [index, port] of ports.entries()) {
    if (index === here) continue;
    const url = new URL(location.href);
    url.port = String(port);
    const link = element("a", { href: url.href, target: "_blank", rel: "noopener" }, `node ${index + 1}`);
    link.addEventListener("click", () => { link.hash = location.hash; });
    parts.push(link, " ");
  }
  $("node").replaceChildren(...parts);
  $("node").hidden = false;
}

async function findNodes() {
  try {
    ports = (await (await fetch("nodes")).json()).ports;
  } catch {
    ports = [];  // it is an ornament: the chat works without
  }
}

// A name per tab, so that two tabs are two people.
function storedName() {
  let name = sessionStorage.getItem("name");
  if (!name) {
    name = `Guest ${100 + crypto.getRandomValues(new Uint16Array(1))[0] % 900}`;
    sessionStorage.setItem("name", name);
  }
  return name;
}

$("name").value = me.name;
$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.split(/\s+/).filter(Boolean).join(" ");
  if (!name || name === me.name) return;
  me.name = name;
  sessionStorage.setItem("name", name);
  const old = socket;
  socket = null;
  if (old !== null) old.close(1000);
  room.joined = false;
  attempts = 0;
  connect();  // the name belongs to the connection, as an identity from a token would
});
$("room-form").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("room").value);
  $("room").value = "";
  $("text").focus();
});
$("say-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && say(text)) $("text").value = "";
  lastTyping = 0;
});
$("text").addEventListener("input", () => {
  if (room.joined && $("text").value && Date.now() - lastTyping > TYPING_EVERY) {
    lastTyping = Date.now();
    send("typing", { room: room.name }, "typing");  // with an id it is answered, which shows the watchdog life
  }
});
window.addEventListener("hashchange", () => enter(location.hash.slice(1)));
window.addEventListener("online", () => { if (timer && $("state").dataset.state === "offline") connect(); });

const wanted = location.hash.slice(1);
enter(ROOM.test(wanted) ? wanted : FIRST_ROOMS[0]);
findNodes().then(connect);
