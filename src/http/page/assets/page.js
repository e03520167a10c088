// Updates the page: after each change, and periodically, it fetches the page again and brings the parts marked
// `data-live` up to date, node by node. Nodes that did not change stay, with the selection and the focus in them.
// Parts that a user interacts with (the player, the search field) are not marked.
'use strict';

const UPDATE_DELAY_MS = 250;
const SECOND_UPDATE_DELAY_MS = 3000; // the server caches the figures for two seconds
const UPDATE_INTERVAL_MS = 15000; // for ages and for changes that other replicas made
const RECONNECT_MIN_MS = 1000; // doubles with each failure
const RECONNECT_MAX_MS = 30000;
const COPIED_MS = 1500; // how long a button says that it has copied
const status = document.getElementById('live');
let timer;
let updating = false;
let updateAgain = false;
let signedOut = false;

// Screen readers announce each change.
function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

async function update() {
  if (signedOut) return;
  if (updating) {
    updateAgain = true;
    return;
  }
  updating = true;
  try {
    const response = await fetch(location.href, { redirect: 'manual' });
    // The only redirect of a page that was shown is to the sign-in form.
    if (response.type === 'opaqueredirect') return endSession();
    if (!response.ok) return;
    const fetched = new DOMParser().parseFromString(await response.text(), 'text/html');
    const focused = document.activeElement;
    for (const part of document.querySelectorAll('[data-live]')) {
      const next = fetched.getElementById(part.id);
      if (next) morph(part, next);
    }
    // Moving an element takes its focus.
    if (focused && focused.isConnected && focused !== document.activeElement) focused.focus();
    document.title = fetched.title;
    if (events && events.readyState === EventSource.OPEN) say('live');
  } catch {
    say('disconnected');
  } finally {
    updating = false;
    if (updateAgain) {
      updateAgain = false;
      scheduleUpdate();
    }
  }
}

function endSession() {
  signedOut = true;
  if (events) events.close();
  const link = document.createElement('a');
  link.href = `/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`;
  link.textContent = 'Sign in';
  status.replaceChildren('Signed out. ', link);
}

// Elements with a key are the same if their keys are: rows move when their order changes.
function key(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined;
}

function morph(node, next) {
  if (node.isEqualNode(next)) return;
  if (node.nodeType !== Node.ELEMENT_NODE) {
    node.data = next.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    // What the user opened stays open.
    if (name !== 'open' && !next.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  morphChildren(node, next);
}

function morphChildren(parent, next) {
  const wanted = new Set([...next.children].map(key));
  for (const child of [...parent.children]) {
    if (key(child) && !wanted.has(key(child))) child.remove();
  }
  let at = parent.firstChild;
  const removeAt = () => {
    const rest = at.nextSibling;
    at.remove();
    at = rest;
  };
  for (const child of [...next.childNodes]) {
    // Otherwise the text between two rows could move all rows after it.
    while (at && key(child) && !key(at)) removeAt();
    const same = (node) => node.nodeName === child.nodeName && key(node) === key(child);
    let match = at && same(at) ? at : undefined;
    if (!match && key(child)) match = [...parent.children].find(same);
    if (!match) {
      parent.insertBefore(child, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else parent.insertBefore(match, at);
    morph(match, child);
  }
  while (at) removeAt();
}

function scheduleUpdate() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    await update();
    timer = setTimeout(update, SECOND_UPDATE_DELAY_MS);
  }, UPDATE_DELAY_MS);
}

// Only the visible page holds an event stream: a browser opens at most six connections to a server, for
// all tabs and for the pages in its back/forward cache.
let events;
let reconnectTimer;
let failures = 0;

function disconnect() {
  clearTimeout(reconnectTimer);
  if (events) events.close();
}

function connect() {
  disconnect();
  if (document.hidden || signedOut) return;
  events = new EventSource('/api/events');
  events.addEventListener('video', scheduleUpdate);
  events.addEventListener('reload', scheduleUpdate);
  events.onopen = () => {
    failures = 0;
    say('live');
  };
  events.onerror = () => {
    say('connecting…');
    // After another status than 200, such as a proxy's 502, the browser does not try again.
    if (events.readyState !== EventSource.CLOSED) return;
    reconnectTimer = setTimeout(connect, Math.min(RECONNECT_MIN_MS * 2 ** failures, RECONNECT_MAX_MS));
    failures += 1;
    // The session may have ended.
    update();
  };
}

// Buttons with `data-copy` copy that text, or that of the element with the id in `data-copy-of`.
document.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy], [data-copy-of]');
  if (!button) return;
  const text = button.dataset.copy ?? document.getElementById(button.dataset.copyOf).textContent;
  await navigator.clipboard.writeText(text);
  const label = button.firstElementChild;
  label.textContent = 'Copied';
  setTimeout(() => { label.textContent = 'Copy'; }, COPIED_MS);
});

document.addEventListener('keydown', (event) => {
  const search = document.getElementById('q');
  const typing = event.target.closest('input, textarea, select');
  if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey || typing || !search) return;
  event.preventDefault();
  search.focus();
  search.select();
});

// Without a clipboard, as over plain HTTP, the buttons stay hidden.
if (navigator.clipboard) document.documentElement.classList.add('copies');
connect();
document.addEventListener('visibilitychange', connect);
addEventListener('pagehide', disconnect);
addEventListener('pageshow', (event) => { if (event.persisted) connect(); });
setInterval(() => { if (!document.hidden) update(); }, UPDATE_INTERVAL_MS);
