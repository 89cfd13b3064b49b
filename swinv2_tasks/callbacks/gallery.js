"use strict";

const form = document.querySelector("form");
const gallery = document.querySelector("main");
const dialog = document.querySelector("dialog");

const samples = [...document.querySelectorAll(".sample")].map((element) => ({
  element,
  labels: JSON.parse(element.dataset.labels),
  frame: element.dataset.frame,
}));

// ---- filters: a sample is shown where a label of the chosen class, or of any, has the score

function highestScore(sample, chosen) {
  const scores = sample.labels.filter(([index]) => chosen === "" || index === Number(chosen)).map(([, score]) => score);
  return Math.max(...scores, -1);
}

function update() {
  const chosen = form.elements.class?.value ?? "";
  const least = Number(form.elements.score?.value ?? 0) / 100;
  const frame = form.elements.frame?.value ?? "";
  const order = Number(form.elements.order?.value ?? 0);

  let shown = 0;
  for (const sample of samples) {
    const score = highestScore(sample, chosen);
    const fits = chosen === "" && least === 0 ? true : score >= least && score >= 0;
    sample.element.hidden = !fits || (frame !== "" && sample.frame !== frame);
    sample.score = score;
    shown += sample.element.hidden ? 0 : 1;
  }
  const ordered = order ? [...samples].sort((a, b) => order * (a.score - b.score)) : samples;
  gallery.append(...ordered.map((sample) => sample.element));

  if (form.elements.least) form.elements.least.value = `${Math.round(100 * least)} %`;
  form.elements.count.value = `${shown} of ${samples.length} shown`;
}

form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
update();

// ---- pictures: a click enlarges, another one, or Escape, closes

for (const { element } of samples)
  element.querySelector("button")?.addEventListener("click", () => {
    const picture = element.querySelector("img");
    const texts = [...element.querySelectorAll("figcaption, li")].map((line) => line.textContent);
    dialog.querySelector("img").src = picture.src;
    dialog.querySelector("img").alt = picture.alt;
    dialog.querySelector("p").textContent = texts.join(" · ");
    dialog.showModal();
  });
dialog.addEventListener("click", () => dialog.close());
