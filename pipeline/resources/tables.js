
"use strict";
const number = text => {
  const found = text.match(/^[-+]?[0-9.]+(e[-+]?[0-9]+)?/i);
  return found ? parseFloat(found[0]) : NaN;
};
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b);
  return x - y;
};
const asked = new URLSearchParams(decodeURIComponent(location.hash.slice(1)));

document.querySelectorAll("section:has(table)").forEach(section => {
  const body = section.querySelector("tbody");
  const heads = [...section.querySelectorAll("th")];
  const words = section.querySelector("input");
  const count = section.querySelector("output");
  const rows = [...body.rows].map(row => ({row, cells: [...row.cells].map(c => c.textContent)}));
  const choices = [];

  const sort = (place, down) => {
    heads.forEach((head, i) => {
      if (i === place) head.ariaSort = down ? "descending" : "ascending";
      else head.removeAttribute("aria-sort");
    });
    const sign = down ? -1 : 1;
    // Empty cells stay last either way.
    [...rows].sort((a, b) => {
      const [x, y] = [a.cells[place], b.cells[place]];
      return (x === "") - (y === "") || sign * compare(x, y);
    }).forEach(found => body.append(found.row));
  };
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach(({row, cells}) => {
      const text = cells.join("\n").toLowerCase();
      row.hidden = !wanted.every(word => text.includes(word))
        || !choices.every(([place, choice]) => !choice.value || cells[place] === choice.value);
      shown += !row.hidden;
    });
    count.value = `${shown} of ${rows.length} rows`;
  };

  heads.forEach((head, place) => {
    head.querySelector("button").onclick = () => sort(place, head.ariaSort === "ascending");
    const values = [...new Set(rows.map(({cells}) => cells[place]))];
    if (!head.hasAttribute("data-choice") || values.length < 2) return;
    const choice = document.createElement("select");
    choice.ariaLabel = head.textContent;
    choice.append(new Option(`${head.textContent}: all`, ""), ...values.map(v => new Option(v)));
    choice.onchange = filter;
    choices.push([place, choice]);
    count.before(choice);
  });
  words.oninput = filter;
  words.value = asked.get("filter") ?? "";
  if (asked.has("sort")) sort(Number(asked.get("sort")), asked.has("down"));
  filter();
});
