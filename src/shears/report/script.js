"use strict";
(() => {
  const status = document.getElementById("copied");
  let timer = 0;

  function notify(text) {
    status.textContent = text;
    clearTimeout(timer);
    timer = setTimeout(() => { status.textContent = ""; }, 8000);
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      notify("Copied: " + text);
    } catch {
      notify("Copy it from here: " + text);
    }
  }

  function showLabel(event) {
    const point = event.target.closest("[data-label]");
    if (point) point.closest("figure").querySelector("output").textContent = point.dataset.label;
  }

  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, showLabel);
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-copy]");
    if (target) copy(target.dataset.copy);
  });
  document.addEventListener("keydown", (event) => {
    const target = event.target.closest("g[data-copy]");
    if (target && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      copy(target.dataset.copy);
    }
  });
})();
