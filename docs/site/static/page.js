// What scrolls sideways can be reached by keyboard: tables, code and formulas that are wider than the page.
function reachable() {
  for (const region of document.querySelectorAll(".table-wrapper, .highlight pre, .formula")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  }
}

// The two columns beside the text are told apart by name.
function named() {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
}

addEventListener("DOMContentLoaded", () => { reachable(); named(); });
addEventListener("load", reachable);
addEventListener("resize", reachable);
