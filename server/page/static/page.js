"use strict";
// The page works without this file. With it, a running job's part is replaced as the server sends it, the list is
// read again while jobs run, and a key behind the address's # opens the page.

const form = document.getElementById("enter");
if (form && location.hash.length > 1) {
  form.elements.token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  form.submit();
}

const live = document.getElementById("live");
if (live && live.dataset.events) {
  const source = new EventSource(live.dataset.events);
  source.addEventListener("live", (event) => { live.innerHTML = event.data; });
  source.addEventListener("ended", () => { source.close(); location.reload(); });
}

const list = document.getElementById("jobs");
if (list && list.dataset.refresh) {
  setInterval(async () => {
    if (document.hidden || list.contains(document.activeElement)) return;
    const answer = await fetch(location.href);
    if (answer.status === 401) { location.reload(); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    list.replaceChildren(...page.getElementById("jobs").childNodes);
  }, 3000);
}
