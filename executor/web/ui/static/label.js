// The page to label: keys and clicks on neighbours, dropped pictures, and a gallery without end.
import { say, send } from "./page.js";

const WORDS = { fits: "fits", not: "does not fit" };

// a picture of one's own ----------------------------------------------------------------------------------------

const drop = document.getElementById("drop");

function sized(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${Math.round(bytes / 1e5) / 10} MB`;
}

async function take(file) {
  say("", "open", "drop");
  const largest = Number(drop.dataset.largest);
  if (file.size > largest) {
    return say(`The picture has ${sized(file.size)}; at most ${sized(largest)} are taken. Nothing was sent.`, "bad", "drop");
  }
  const form = new FormData(drop);
  form.set("picture", file, file.name || "pasted");
  say("The picture is being looked at…", "open", "drop");
  try {
    location.assign((await (await send(drop.action, form)).json()).to);
  } catch (error) {
    say(error.message, "bad", "drop");
  }
}

if (drop) {
  const input = drop.querySelector("input[type=file]");
  drop.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.files.length) take(input.files[0]);
  });
  input.addEventListener("change", () => input.files.length && take(input.files[0]));
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) take(file);
    else say("What was dropped is no file. Save the picture first, or choose a file.", "bad", "drop");
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) { event.preventDefault(); take(file); }
  });
}

// a gallery without end: pages come as somebody scrolls to them, and those far away are let go of ----------------

const gallery = document.getElementById("gallery");

if (gallery) {
  const step = Number(gallery.dataset.step), total = Number(gallery.dataset.total), of = gallery.dataset.of;
  const following = document.getElementById("following");
  const near = new IntersectionObserver((entries) => entries.forEach(seen), { rootMargin: "1500px" });

  function seen(entry) {
    const page = entry.target;
    page.dataset.near = entry.isIntersecting ? "yes" : "";
    if (entry.isIntersecting) fill(page);
    else if (page.childElementCount) {
      page.style.minHeight = `${page.offsetHeight}px`;
      page.replaceChildren();
    }
  }

  async function fill(page) {
    const offset = Number(page.dataset.offset);
    if (!page.childElementCount && !page.dataset.coming) {
      page.dataset.coming = "yes";
      try {
        const query = new URLSearchParams({ of, offset });
        const response = await fetch(`${gallery.dataset.more}?${query}`);
        if (!response.ok) throw new Error();
        if (page.dataset.near) page.innerHTML = await response.text();
        page.style.minHeight = "";
        say("", "open", "gallery");
      } catch {
        say("Further pictures cannot be shown now; scroll again in a moment.", "open", "gallery");
      }
      delete page.dataset.coming;
    }
    if (page === gallery.lastElementChild && page.childElementCount && offset + step < total) add(offset + step);
  }

  function add(offset) {
    const page = document.createElement("ul");
    page.className = "thumbs page";
    page.dataset.offset = offset;
    page.style.minHeight = `${gallery.firstElementChild.offsetHeight || 1000}px`;
    gallery.append(page);
    near.observe(page);
  }

  if (following) following.hidden = true;
  near.observe(gallery.firstElementChild);
}

// neighbours ------------------------------------------------------------------------------------------------------

const labelling = document.getElementById("labelling");
const form = document.getElementById("say");
const list = document.getElementById("neighbours");

if (list && form) {
  const current = document.getElementById("current"), which = document.getElementById("which");
  const done = [], waiting = [];
  let number = Number(form.dataset.number), busy = false;

  const items = () => [...list.children];

  function go(to) {
    const all = items();
    if (to < 0) return;
    if (to >= all.length) {
      waiting.length = 0; // they were meant for further neighbours, and there are none
      say("These were all its neighbours. Take another picture, or train with what was said.", "good", "end");
      to = all.length - 1;
    }
    number = to;
    const item = all[number];
    const name = document.createElement("bdi");
    name.textContent = item.dataset.name;
    current.src = item.dataset.large;
    current.alt = `The neighbour ${item.dataset.name}`;
    which.replaceChildren(`${number + 1} of ${all.length}: `, name);
    form.elements.n.value = number;
    form.elements.shown.value = item.dataset.said;
    const fields = document.getElementById("n-fields");
    fields.replaceChildren(...Object.entries(JSON.parse(item.dataset.fields)).map(([field, value]) => {
      const input = document.createElement("input");
      Object.assign(input, { type: "hidden", name: `n_${field}`, value });
      return input;
    }));
    all.forEach((each, place) => each.toggleAttribute("data-current", place === number));
    list.scrollLeft = item.offsetLeft - list.offsetLeft - list.clientWidth / 3; // where the list is one row
    const next = all[number + 1];
    if (next) new Image().src = next.dataset.large;
  }

  function mark(item, said) {
    item.dataset.said = said;
    const badge = item.querySelector(".badge");
    badge.hidden = !said;
    badge.className = `badge ${said === "fits" ? "good" : "bad"}`;
    badge.textContent = WORDS[said] || "";
  }

  function show(answer) {
    if (answer.word === undefined) return;
    labelling.dataset.word = answer.word;
    items().forEach((item) => mark(item, answer.clicks[item.dataset.key] || ""));
    form.elements.shown.value = items()[number].dataset.said;
  }

  async function tell(said) {
    if (said === "skip") return go(number + 1);
    if (said === "undo") {
      if (done.length) go(done.pop());
    }
    const data = new FormData(form);
    data.set("say", said);
    const answer = await (await send(form.action, data)).json();
    show(answer);
    document.getElementById("kept").textContent = answer.kept;
    say(answer.told, "open", "other");
    say("", "open", "tell");
    if (said !== "undo") {
      done.push(number);
      go(number + 1);
    }
  }

  // What is said is stored before the next picture appears. What is pressed meanwhile is done after it, in its order.
  async function then(step) {
    waiting.push(step);
    if (busy) return;
    busy = true;
    form.setAttribute("aria-busy", "true");
    try {
      while (waiting.length) await waiting.shift()();
    } catch (error) {
      const lost = waiting.splice(0).length;
      say(lost ? `${error.message} What was pressed after that was not stored either.` : error.message, "bad", "tell");
    } finally {
      busy = false;
      form.removeAttribute("aria-busy");
    }
  }

  const KEYS = { f: "fits", ArrowUp: "fits", d: "not", ArrowDown: "not", s: "skip", ArrowRight: "skip", u: "undo" };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const said = event.submitter?.value || "skip";
    then(() => tell(said));
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!KEYS[key] && key !== "ArrowLeft") return;
    event.preventDefault();
    if (event.repeat) return;
    then(() => key === "ArrowLeft" ? go(number - 1) : tell(KEYS[key]));
  });
  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (!item || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    then(() => go(items().indexOf(item)));
  });
  go(number);

  // Another tab, or another person, may label the same picture.
  async function look() {
    if (document.visibilityState !== "visible" || busy) return;
    try {
      const response = await fetch(labelling.dataset.news);
      if (!response.ok || busy) return;
      const news = await response.json();
      if (news.word > Number(labelling.dataset.word)) {
        show(news);
        say("Another tab labels this picture, too. What was said there is shown here now.", "open", "other");
      }
      if (name && news.label_word > Number(labelling.dataset.labelWord)) {
        labelling.dataset.labelWord = news.label_word;
        name.elements.known.value = news.label_word;
        const field = name.elements.label, wrote = field.value !== field.defaultValue; // what somebody types now stays
        field.defaultValue = news.label ?? "";
        if (!wrote) field.value = field.defaultValue;
        say(news.label === null ? "Another tab has taken the label back." : `Another tab has labelled this picture “${news.label}”.`, "open", "other-label");
      }
    } catch { /* the service is away for a moment: the next click will say so */ }
  }
  setInterval(look, 3000);
  document.addEventListener("visibilitychange", look);
}

// until the whole gallery was looked at, better neighbours may come behind the one that is shown
if (list && list.dataset.done === "no") {
  const again = async () => {
    try {
      const response = await fetch(labelling.dataset.again);
      if (response.ok) {
        const fresh = document.createElement("ol");
        fresh.innerHTML = await response.text();
        const state = response.headers.get("X-Looked-At");
        if (!form && fresh.childElementCount) return location.reload();
        const kept = [...list.children].slice(0, form ? Number(form.elements.n.value) + 1 : 0);
        const keys = new Set(kept.map((item) => item.dataset.key));
        list.replaceChildren(...kept, ...[...fresh.children].filter((item) => !keys.has(item.dataset.key)));
        const progress = document.getElementById("progress");
        if (state === "done") { progress.hidden = true; return; }
        if (state) progress.textContent = state;
      }
    } catch { /* it comes back */ }
    setTimeout(again, 2000);
  };
  setTimeout(again, 2000);
}

// the label of the picture ----------------------------------------------------------------------------------------

const name = document.getElementById("name");

name?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const answer = await (await send(name.action, new FormData(name))).json();
    name.elements.known.value = answer.label_word;
    name.elements.label.defaultValue = answer.label ?? "";
    labelling.dataset.labelWord = answer.label_word;
    say(answer.told || answer.said, answer.told ? "open" : "good", "label");
  } catch (error) {
    say(error.message, "bad", "label");
  }
});
