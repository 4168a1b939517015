// What scrolls sideways can be reached by keyboard: tables, code and formulas that are wider than the page.
function reachable() {
  for (const region of document.querySelectorAll(".table-wrapper, .highlight pre, .formula")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  }
}
addEventListener("DOMContentLoaded", reachable);
addEventListener("resize", reachable);
