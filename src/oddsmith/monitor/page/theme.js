// Sets the theme before anything is drawn, so that the page does not flash: the one chosen here before, else the system's.
'use strict';
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem('oddsmith-theme'); } catch { /* storage is switched off */ }
  if (chosen === 'dark' || chosen === 'light') document.documentElement.dataset.theme = chosen;
})();
