// Updates the page: after each change, and periodically, it fetches the page again and replaces the parts
// marked `data-live`. Parts that a user interacts with (the player, the search field) are not marked.
'use strict';

const UPDATE_DELAY_MS = 250;
const SECOND_UPDATE_DELAY_MS = 3000; // the server caches the figures for two seconds
const UPDATE_INTERVAL_MS = 15000; // for ages and for changes that other replicas made
const status = document.getElementById('live');
let timer;
let updating = false;
let updateAgain = false;

async function update() {
  if (updating) {
    updateAgain = true;
    return;
  }
  updating = true;
  try {
    const response = await fetch(location.href, { redirect: 'error' });
    if (!response.ok) return;
    const fetched = new DOMParser().parseFromString(await response.text(), 'text/html');
    for (const part of document.querySelectorAll('[data-live]')) {
      const next = fetched.getElementById(part.id);
      if (!next || next.innerHTML === part.innerHTML) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement : null;
      const href = focused && focused.getAttribute('href');
      part.replaceWith(next);
      const same = href ? next.querySelector(`a[href="${CSS.escape(href)}"]`) : focused && next.querySelector('button');
      if (same) same.focus();
    }
    document.title = fetched.title;
  } catch {
    status.textContent = 'disconnected';
  } finally {
    updating = false;
    if (updateAgain) {
      updateAgain = false;
      scheduleUpdate();
    }
  }
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

function connect() {
  if (events) events.close();
  if (document.hidden) return;
  events = new EventSource('/api/events');
  events.addEventListener('video', scheduleUpdate);
  events.addEventListener('reload', scheduleUpdate);
  events.onopen = () => { status.textContent = 'live'; };
  events.onerror = () => { status.textContent = 'connecting…'; };
}

connect();
document.addEventListener('visibilitychange', connect);
addEventListener('pagehide', () => { if (events) events.close(); });
addEventListener('pageshow', (event) => { if (event.persisted) connect(); });
setInterval(() => { if (!document.hidden) update(); }, UPDATE_INTERVAL_MS);
