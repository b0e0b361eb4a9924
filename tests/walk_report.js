"use strict";
// Walks a Snakemake report by clicks, as a person would: every entry of the menu, every result in
// it, and what is said about it. What was seen then stands in the page's title as JSON.
(async () => {
  const seen = { entries: [], results: [] };
  const until = async (done) => {
    for (let tries = 0; !done(); tries++) {
      if (tries === 500) throw new Error(`waited in vain for ${done}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const entries = () => [...document.querySelectorAll("nav ul > li > a")];
  const rows = () => [...document.querySelectorAll("nav tbody > tr")];
  const view = () => document.querySelector("#app div.h-screen > div > img, #app iframe")?.src;
  const caption = () => document.querySelector("nav .prose")?.textContent;
  const loaded = new Set();
  document.addEventListener("load", (event) => loaded.add(event.target.src), true);

  const enter = async (name) => {
    document.querySelector("nav ol a").click(); // home
    await until(() => entries().length);
    entries().find((entry) => entry.textContent === name).click();
    await new Promise((resolve) => setTimeout(resolve, 20));
  };
  const sha256 = async (address) => {
    const bytes = await (await fetch(address)).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  };

  await until(() => entries().length);
  for (const name of entries().map((entry) => entry.textContent)) {
    seen.entries.push(name);
    await enter(name);
    for (let place = 0; place < rows().length; place++) {
      const before = view();
      const title = rows()[place].cells[0].textContent;
      const [eye, about] = rows()[place].querySelectorAll("a");
      eye.click();
      await until(() => view() !== before && loaded.has(view()));
      about.click();
      await until(caption);
      const result = { entry: name, title, caption: caption().trim(), sha256: await sha256(view()) };
      seen.results.push(result);
      await enter(name);
    }
  }
  return seen;
})().then(
  (seen) => { document.title = JSON.stringify(seen); },
  (error) => { console.error(`error: ${error}`); },
);
