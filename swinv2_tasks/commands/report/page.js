"use strict";

// ---- tables: a click on a column's name sorts by it, a second one the other way around

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.textContent === "–" ? null : cell.textContent;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const isAscending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");

  const rows = [...table.tBodies[0].rows];
  rows.sort((first, second) => {
    const a = valueOf(first, column), b = valueOf(second, column);
    if (a === null || b === null) return (a === null) - (b === null);  // what there is nothing of comes last
    return isAscending ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll("th"))
  heading.querySelector("button").addEventListener("click", () => sort(heading));

// ---- pictures: a click enlarges, another one, or Escape, closes

const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".row button"))
  button.addEventListener("click", () => {
    const picture = button.querySelector("img");
    dialog.querySelector("img").src = picture.src;
    dialog.querySelector("img").alt = picture.alt;
    dialog.querySelector("p").textContent = picture.alt;
    dialog.showModal();
  });
dialog.addEventListener("click", () => dialog.close());

// ---- dark or light: as the system says, until the button is pressed

document.querySelector("button.scheme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.scheme
    ? root.dataset.scheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.scheme = isDark ? "light" : "dark";
});
