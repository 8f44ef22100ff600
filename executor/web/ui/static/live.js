// Keeps the parts of a page up to date: the service says which have changed, and sends their markup.

import { say, show } from "./page.js";

const live = document.querySelector("[data-live]");
const AWAY = "The service behind this page does not answer. It will come back by itself; what you see may be out of date.";
let events = null;
let timer = null;

function close() {
  clearTimeout(timer);
  events?.close();
  events = null;
}

function open() {
  close();
  events = new EventSource(live.dataset.live);
  events.addEventListener("open", () => say(null, "", "away"));
  events.addEventListener("parts", (event) => {
    say(null, "", "away");
    for (const [id, markup] of Object.entries(JSON.parse(event.data))) {
      const part = document.getElementById(`part-${id}`);
      if (part) show(part, markup);
      else if (id === "ended-now") location.reload();
    }
  });
  events.addEventListener("trouble", (event) => say(`${AWAY} (${JSON.parse(event.data)})`, "bad", "away"));
  events.addEventListener("gone", (event) => {
    close();
    say(JSON.parse(event.data), "bad", "away");
  });
  events.addEventListener("error", async () => {
    say(AWAY, "bad", "away");
    if (events?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    close();
    const answer = await fetch(live.dataset.live, { method: "HEAD" }).catch(() => null);
    if (answer?.status === 401 || answer?.status === 404) location.reload();
    else timer = setTimeout(open, 5000);
  });
}

// A browser has six connections to a service: pages that nobody sees hold none.
function look() {
  if (document.hidden) close();
  else if (!events) open();
}
document.addEventListener("visibilitychange", look);
addEventListener("pagehide", close);
addEventListener("pageshow", look);
look();
