// What is said of a label is sent without leaving the place on the page.

import { say, send } from "./page.js";

const labels = document.querySelector("[data-labels]");

labels?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const data = new URLSearchParams(new FormData(event.target, event.submitter));
  const place = [...labels.querySelectorAll(".suspects > li")].indexOf(event.target.closest("li"));
  for (const button of event.target.querySelectorAll("button")) button.disabled = true;
  try {
    const response = await send(event.target.action, data);
    labels.innerHTML = await response.text();
    say("Stored.", "good");
    labels.querySelectorAll(".suspects > li")[place]?.querySelector("button")?.focus({ preventScroll: true });
  } catch (error) {
    say(error.message, "bad");
    for (const button of event.target.querySelectorAll("button")) button.disabled = false;
  }
});
