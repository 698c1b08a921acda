"use strict";
// Asks the server every two seconds for the parts that have changed, while anybody looks.
(() => {
  const byId = (id) => document.getElementById(id);
  const said = byId("live");
  const address = new URLSearchParams(location.search);
  let version = 0;

  // The markup is the server's template, in which all text is escaped. A chart that is there already stays.
  function put(name, html) {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    for (const place of fresh.content.querySelectorAll("[id^=chart-]")) {
      const old = byId(place.id);
      if (old) place.replaceWith(old);
    }
    byId(`part-${name}`).replaceChildren(fresh.content);
  }

  async function look() {
    address.set("since", version);
    const response = await fetch(`parts?${address}`);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const answer = await response.json();
    for (const [name, part] of Object.entries(answer.parts)) {
      put(name, part.html);
      await window.omniopd.fill(part);
    }
    version = answer.version;
    if (Object.keys(answer.parts).length) said.dataset.changed = new Date().toLocaleTimeString();
    said.textContent = answer.error || (said.dataset.changed ? `live, last change ${said.dataset.changed}` : "reading …");
    return answer.whole;
  }

  async function go() {
    let wait = 5000;
    try {
      const whole = document.hidden ? true : await look();
      if (whole && version) window.omniopd.ready(Promise.resolve());
      wait = whole ? 2000 : 500;
    } catch (error) {
      said.textContent = `no connection to omniopd view (${error.message}); what is shown is old`;
    }
    setTimeout(go, wait);
  }

  go();
})();
