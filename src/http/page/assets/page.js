// Follows what happens: every change reads the page again and puts its live parts in place. What is
// being used (the player, a text field) is not a live part.
'use strict';

const SOON_MS = 250;
const LATER_MS = 3000; // figures may be cached for two seconds
const EVERY_MS = 15000; // ages, and what another replica did
const status = document.getElementById('live');
let timer;
let running = false;
let again = false;

async function refresh() {
  if (running) {
    again = true;
    return;
  }
  running = true;
  try {
    const answer = await fetch(location.href, { redirect: 'error' });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const part of document.querySelectorAll('[data-live]')) {
      const next = fresh.getElementById(part.id);
      if (!next || next.innerHTML === part.innerHTML) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement : null;
      const address = focused && focused.getAttribute('href');
      part.replaceWith(next);
      const same = address ? next.querySelector(`a[href="${CSS.escape(address)}"]`) : focused && next.querySelector('button');
      if (same) same.focus();
    }
    document.title = fresh.title;
  } catch {
    status.textContent = 'not connected';
  } finally {
    running = false;
    if (again) {
      again = false;
      soon();
    }
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    await refresh();
    timer = setTimeout(refresh, LATER_MS);
  }, SOON_MS);
}

// Only the page that is seen listens: a browser has six connections to a server for all of its tabs and
// for the pages that it keeps for the way back.
let events;

function listen() {
  if (events) events.close();
  if (document.hidden) return;
  events = new EventSource('/api/events');
  events.addEventListener('video', soon);
  events.addEventListener('reload', soon);
  events.onopen = () => { status.textContent = 'live'; };
  events.onerror = () => { status.textContent = 'connecting…'; };
}

listen();
document.addEventListener('visibilitychange', listen);
addEventListener('pagehide', () => { if (events) events.close(); });
addEventListener('pageshow', (shown) => { if (shown.persisted) listen(); });
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
