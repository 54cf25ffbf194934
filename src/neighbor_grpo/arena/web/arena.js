// The page of a rater: asks for a pair, shows it, sends the answers until the server has them, asks for the next one.

const study = document.getElementById("study");
const texts = JSON.parse(study.dataset.texts);
const [heading, status, pair, prompt, count, progress, undo, zoom, thanks] =
  ["heading", "status", "pair", "prompt", "count", "progress", "undo", "zoom", "thanks"].map((id) => document.getElementById(id));
const pictures = [...document.querySelectorAll(".picture")];
const questions = [...document.querySelectorAll("fieldset")];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "tie", ArrowDown: "bad" };

let turn = null; // what the server said last
let answers = {};
let ready = false; // both pictures are seen, and no answer is under way

const fill = (text, values) => text.replace(/{(\w+)}/g, (_, name) => values[name]);
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Ask the server until it answers; null where it refuses.
async function ask(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF": study.dataset.csrf };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : {};
  for (let pause = 1; ; pause = Math.min(2 * pause, 15)) {
    try {
      const reply = await fetch(path, options);
      if (reply.ok) return await reply.json();
      if (reply.status === 401) return say(texts.session);
      const { error } = await reply.json();
      say(error);
      if (reply.status !== 429 && reply.status < 500) return null;
    } catch {
      say(texts.offline);
    }
    await wait(pause);
  }
}

function say(text) {
  if (status.textContent !== text) status.textContent = text;
  return null;
}

// Show what the server said, and let the rater answer once both pictures are there.
async function show(next) {
  ready = false;
  turn = next;
  answers = {};
  say(turn.lost ? texts.lost : "");
  progress.max = Math.max(turn.total, 1);
  progress.value = turn.done;
  count.textContent = fill(texts.progress, turn);
  undo.setAttribute("aria-disabled", String(!turn.undo));
  pair.hidden = !turn.token;
  thanks.hidden = Boolean(turn.token);
  zoom.hidden = !turn.token;
  heading.textContent = turn.token ? fill(texts.pair, { number: turn.done + 1, total: turn.total }) : texts.finished;
  prompt.textContent = turn.prompt ?? "";
  mark();
  if (turn.token) await draw();
  heading.focus({ preventScroll: true });
  ready = true;
}

// Draw both pictures.  Where one does not come, the pair may have been given to others: ask again.
async function draw() {
  const token = turn.token;
  pair.classList.add("waiting");
  const drawn = pictures.map((picture) => {
    const image = picture.firstElementChild;
    image.src = `/picture/${turn[picture.dataset.side]}`;
    return image.decode();
  });
  try {
    await Promise.all(drawn);
    pair.classList.remove("waiting");
  } catch {
    await wait(1);
    if (turn.token === token) await load();
  }
}

// Ask for something and show the reply.  Where it is refused, the rater may try again.
async function update(path, body) {
  ready = false;
  const said = await ask(path, body);
  if (said) return show(said);
  answers = {};
  mark();
  ready = Boolean(turn);
}

const load = () => update("/pair");

// Mark what is answered, and the question that the keys answer.
function mark() {
  const now = current();
  for (const field of questions) {
    field.classList.toggle("now", questions.length > 1 && field === now);
    for (const button of field.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(answers[field.dataset.question] === button.dataset.answer));
  }
}

const current = () => questions.find((field) => !(field.dataset.question in answers));

async function choose(question, answer) {
  if (!ready || !turn.token) return;
  answers[question] = answer;
  mark();
  const next = current();
  if (next) {
    if (document.activeElement?.closest("fieldset")) next.querySelector("button").focus();
    return;
  }
  await update("/vote", { assignment: turn.token, answers });
}

async function takeBack() {
  if (!ready) return;
  const given = Object.keys(answers);
  if (given.length) {
    delete answers[given.at(-1)];
    return mark();
  }
  if (turn.undo) await update("/undo", { assignment: turn.undo });
}

// Enlarge both pictures around the place that was clicked, or their middle; or show them whole again.
function toggleZoom(event) {
  const image = event?.target.closest(".picture img")?.getBoundingClientRect();
  const [x, y] = image ? [(event.clientX - image.left) / image.width, (event.clientY - image.top) / image.height] : [0.5, 0.5];
  const zoomed = pair.classList.toggle("zoomed");
  zoom.setAttribute("aria-pressed", String(zoomed));
  for (const picture of pictures)
    picture.scrollTo(x * picture.scrollWidth - picture.clientWidth / 2, y * picture.scrollHeight - picture.clientHeight / 2);
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) return;
  const key = event.key.toLowerCase();
  if (key === "u") takeBack();
  else if (key === "z") toggleZoom();
  else if (event.key in KEYS && !(pair.classList.contains("zoomed") && event.target.closest(".picture"))) {
    const question = current();
    if (!question) return;
    event.preventDefault();
    choose(question.dataset.question, KEYS[event.key]);
  }
});

for (const field of questions)
  field.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && event.detail < 2) choose(field.dataset.question, button.dataset.answer); // a double click is one vote
  });

for (const picture of pictures) {
  picture.addEventListener("click", toggleZoom);
  picture.addEventListener("scroll", () => {
    for (const other of pictures) other.scrollTo(picture.scrollLeft, picture.scrollTop);
  });
}

undo.addEventListener("click", takeBack);
zoom.addEventListener("click", toggleZoom);
load();
