// What every page can do: sliders between two pictures, and the search of a gallery.  Events are heard at the document, so that
// what a live page puts in later works too.
document.documentElement.classList.add("js");

function moveSlider(input, value) {
  input.value = value;
  input.setAttribute("aria-valuetext", `${100 - value} % of the second picture`);
  input.closest(".stack").style.setProperty("--at", `${value}%`);
}

function search(gallery) {
  const words = gallery.querySelector("[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const prompts = [...gallery.querySelectorAll(".prompt")];
  for (const prompt of prompts) {
    const text = prompt.querySelector("h3").textContent.toLowerCase();
    prompt.hidden = !words.every(word => text.includes(word));
  }
  const shown = prompts.filter(prompt => !prompt.hidden).length;
  gallery.querySelector("output").textContent = words.length ? `${shown} of ${prompts.length} prompts` : "";
}

document.addEventListener("input", event => {
  const input = event.target;
  if (input.matches(".stack input")) moveSlider(input, input.value);
  if (input.matches(".all-sliders input")) document.querySelectorAll(".stack input").forEach(one => moveSlider(one, input.value));
  if (input.matches(".gallery [type=search]")) search(input.closest(".gallery"));
});
