// Shows how far a comparison is, and loads the page anew when it is done.
import { say } from "./page.js";

const section = document.querySelector("[data-progress]");
if (section) {
  const bar = section.querySelector("progress");
  const words = section.querySelector("[data-words]");
  const events = new EventSource(section.dataset.progress);
  events.addEventListener("step", (event) => {
    const { done, total } = JSON.parse(event.data);
    if (!total) return;
    bar.max = total;
    bar.value = done;
    words.textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} pictures, each counted for both versions.`;
  });
  events.addEventListener("done", () => { events.close(); location.reload(); });
  events.addEventListener("failed", (event) => {
    events.close();
    section.remove();
    say(JSON.parse(event.data).why, "bad", "comparison");
  });
  events.addEventListener("error", () => say("The service does not answer at the moment. This page tries again by itself.", "open", "away"));
  events.addEventListener("open", () => say("", "open", "away"));
}
