// Keeps what is live no older than two seconds, and gives "/" to the find box. Pages work without it.
"use strict";

const EVERY = 1000;

for (const region of document.querySelectorAll("[data-live]")) {
  const lost = document.querySelector("[data-lost]");
  const tick = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(region.dataset.live, { signal: AbortSignal.timeout(15000) });
        if (!answer.ok) throw new Error(answer.status);
        replace(region, await answer.text());
        lost.hidden = true;
      } catch {
        lost.hidden = false;
      }
    }
    setTimeout(tick, EVERY);
  };
  setTimeout(tick, EVERY);
}

// What didn't change stays as it is, and so do the focus and how far a table is scrolled.
function replace(region, html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").body;
  const focused = document.activeElement;
  const href = region.contains(focused) ? focused.getAttribute("href") : null;
  morph(region, fresh);
  if (href !== null && document.activeElement !== focused) {
    for (const link of region.querySelectorAll("a")) {
      if (link.getAttribute("href") === href) { link.focus({ preventScroll: true }); break; }
    }
  }
}

function morph(old, fresh) {
  const before = [...old.children], after = [...fresh.children];
  if (before.length === 0 || before.length !== after.length || before.some((each, n) => each.tagName !== after[n].tagName)) {
    old.replaceChildren(...fresh.childNodes);
    return;
  }
  before.forEach((each, n) => {
    if (each.isEqualNode(after[n])) return;
    for (const { name } of [...each.attributes]) if (!after[n].hasAttribute(name)) each.removeAttribute(name);
    for (const { name, value } of after[n].attributes) each.setAttribute(name, value);
    const mixed = [...each.childNodes, ...after[n].childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (mixed) each.replaceChildren(...after[n].childNodes);
    else morph(each, after[n]);
  });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("find").focus();
  }
});
