// Keeps what is live no older than two seconds, shows an order as of where its slider stands, and gives "/" to
// the find box. Pages work without it.
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

// A slider over an order's facts: the page of the time that it stands on takes the place of what is shown.
for (const form of document.querySelectorAll("[data-slider]")) {
  const range = form.elements.step, said = form.querySelector("output");
  let waits, under_way;
  range.addEventListener("input", () => {
    const moment = form.querySelector(`option[value="${range.value}"]`);
    said.value = moment.label;
    range.setAttribute("aria-valuetext", moment.label);
    clearTimeout(waits);
    waits = setTimeout(show, 250);
  });
  async function show() {
    under_way?.abort();
    under_way = new AbortController();
    const { signal } = under_way, wanted = new URL(`?step=${range.value}`, location.href);
    try {
      const answer = await fetch(wanted, { signal });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const after = [...fresh.querySelectorAll("[data-then]")];
      const before = [...document.querySelectorAll("[data-then]")];
      if (after.length !== before.length) throw new Error(answer.status);
      before.forEach((each, n) => morph(each, after[n]));
      document.querySelector("[name=as_of]").value = fresh.querySelector("[name=as_of]").value;
      history.replaceState(null, "", answer.url);
    } catch (error) {
      if (error.name !== "AbortError") location.assign(wanted);
    }
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("find").focus();
  }
});
