"use strict";
(() => {
  const status = document.getElementById("copied");
  let timer = 0;

  function tell(text) {
    status.textContent = text;
    clearTimeout(timer);
    timer = setTimeout(() => { status.textContent = ""; }, 8000);
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      tell("Copied: " + text);
    } catch {
      tell("Copy it from here: " + text);
    }
  }

  function say(event) {
    const point = event.target.closest("[data-said]");
    if (point) point.closest("figure").querySelector("output").textContent = point.dataset.said;
  }

  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, say);
  document.addEventListener("click", (event) => {
    const found = event.target.closest("[data-copy]");
    if (found) copy(found.dataset.copy);
  });
  document.addEventListener("keydown", (event) => {
    const found = event.target.closest("g[data-copy]");
    if (found && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      copy(found.dataset.copy);
    }
  });
})();
