// What to label next: the suggestions come when they are found; a label is stored where it is typed.
import { say, send } from "./page.js";

const list = document.getElementById("suggestions");
const waiting = document.getElementById("waiting");

if (list && waiting) {
  const fetchAll = async () => {
    try {
      const response = await fetch(list.dataset.from, { headers: { Accept: "text/html" } });
      if (response.status === 503) return setTimeout(fetchAll, 3000);
      const text = await response.text();
      if (!response.ok) {
        const page = new DOMParser().parseFromString(text, "text/html");
        const why = page.querySelector("main .note") || page.querySelector("main p"); // what it says itself comes first
        waiting.textContent = why?.textContent || "There are no suggestions.";
        waiting.className = "notice bad";
        return;
      }
      list.innerHTML = text;
      waiting.remove();
      if (document.activeElement === document.body) list.querySelector("input[name=label]")?.focus(); // else somebody types
    } catch {
      setTimeout(fetchAll, 3000);
    }
  };
  fetchAll();
}

list?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, item = form.closest("li");
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await (await send(form.action, new FormData(form))).json();
    form.elements.known.value = answer.label_word;
    item.classList.add("done");
    document.getElementById("kept").textContent = answer.labels;
    say(answer.told || answer.said, answer.told ? "open" : "good", "label");
    const further = item.nextElementSibling?.querySelector("input[name=label]");
    further?.focus();
  } catch (error) {
    say(error.message, "bad", "label");
  } finally {
    button.disabled = false;
  }
});
