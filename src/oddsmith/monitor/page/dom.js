// The catalogue, elements and figures. Text from a model, a dataset or a file becomes text here and never markup.

/** `charts` with their lines, and the words of `incidents`: oddsmith/metrics.py and oddsmith/system/run_folder.py. */
export const CATALOGUE = JSON.parse(document.getElementById('catalogue').textContent);

/** An element: `make('p', {class: 'facts'}, 'text', child)`. Strings become text nodes. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (/^on[a-z]+$/.test(name)) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Characters that change the writing direction or control a terminal.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Untrusted text, with a visible sign for each character that changes writing direction or controls a terminal. */
export function plain(text) {
  return String(text ?? '').replace(INVISIBLE, (sign) => `⟨${sign.codePointAt(0).toString(16).padStart(4, '0')}⟩`);
}

/** A number with about four significant digits. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return 'n/a';
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(4)));
}

/** Seconds as the terminal writes them: "0:07", "12:05", "1:02:03", "2 days, 1:02:03". */
export function clock(seconds) {
  const all = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(all / 86400), Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60];
  const two = (part) => String(part).padStart(2, '0');
  const day = days ? `${days} day${days === 1 ? '' : 's'}, ` : '';
  return `${day}${days || hours ? `${hours}:${two(minutes)}` : minutes}:${two(all % 60)}`;
}

/** A colour of the page by its name in style.css. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
