// What every page has. `send` and `say` are for the scripts of single pages.

const messages = document.getElementById("messages");
const leaving = new WeakMap();
const SECONDS = 8; // that it is said of something that it was done
const csrf = document.documentElement.dataset.csrf;

/** Say something in the live region. kind: `good`, `bad` or `open`; the same key replaces what was said before. */
export function say(text, kind = "open", key = "said") {
  let notice = messages.querySelector(`[data-key="${key}"]`);
  if (!text) return notice?.remove();
  if (!notice) {
    notice = document.createElement("p");
    notice.dataset.key = key;
    messages.append(notice);
  }
  notice.className = `notice ${kind}`;
  clearTimeout(leaving.get(notice));
  if (kind === "good") leaving.set(notice, setTimeout(() => notice.remove(), SECONDS * 1000));
  if (notice.textContent !== text) notice.textContent = text;
}

/** POST a form's data as a form would, and return the response. Throws an Error with a sentence for the person. */
export async function send(path, data, options = {}) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body: data, headers: { "X-CSRF": csrf }, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Nothing was stored; try again in a moment.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Error("You are signed out. Nothing was stored; load the page again, and enter the token.");
  throw new Error((await response.text()) || "The service refused this.");
}

/** Put markup that the service has rendered into an element, unless it is there already. */
const shown = new WeakMap();
export function show(element, markup) {
  if (shown.get(element) === markup) return;
  shown.set(element, markup);
  const held = element.contains(document.activeElement) ? document.activeElement : null;
  element.innerHTML = markup;
  const again = held && (held.id ? `#${CSS.escape(held.id)}` : held.href && `[href="${CSS.escape(held.getAttribute("href"))}"]`);
  if (again) element.querySelector(again)?.focus({ preventScroll: true }); // who was there by the keyboard still is
}

// A page that says that the service does not answer tries again by itself.
const retry = document.querySelector("[data-retry]");
if (retry) {
  const again = async () => {
    try {
      const response = await fetch(location.href, { redirect: "manual" });
      if (response.status !== 503) return location.reload();
    } catch { /* it is still away */ }
    setTimeout(again, 1000 * retry.dataset.retry);
  };
  setTimeout(again, 1000 * retry.dataset.retry);
}

const said = messages.querySelector('[data-key="said"]');
if (said) say(said.textContent, "good");

// What was said once is not said again when the page is loaded anew.
const address = new URL(location.href);
if (address.searchParams.has("said")) {
  address.searchParams.delete("said");
  history.replaceState(history.state, "", address);
}

// A form is sent once, however often its button is pressed.
addEventListener("submit", (event) => {
  if (event.defaultPrevented) return;
  if (event.target.dataset.sent) return event.preventDefault();
  event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent));
