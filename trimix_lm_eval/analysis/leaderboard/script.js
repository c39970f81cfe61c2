// Sorting and filtering of the table that is in the page. The state is in the address after "#", so
// that a view can be linked to; texts from the table are compared and never made into markup.
"use strict";
(() => {
  const form = document.getElementById("filters");
  const search = document.getElementById("q");
  const selects = [...form.querySelectorAll("select")];
  const heads = [...document.querySelectorAll("thead th")];
  const body = document.querySelector("tbody");
  const rows = [...body.rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  let sort = { key: "", descending: false };

  const numeric = (head) => head.classList.contains("number");
  const cell = (row, at) => row.cells[at].dataset.sort;

  // Empty cells come last, whichever way is up; equal ones keep the order of the file.
  function order() {
    const at = heads.findIndex((head) => head.dataset.key === sort.key);
    const by = (a, b) => {
      const [x, y] = [cell(a, at), cell(b, at)];
      if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
      const way = numeric(heads[at]) ? Number(x) - Number(y) : compare(x, y);
      return sort.descending ? -way : way;
    };
    body.append(...(at < 0 ? rows : [...rows].sort(by)));
    heads.forEach((head, i) => {
      if (i === at) head.setAttribute("aria-sort", sort.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = selects.every((s) => !s.value || row.dataset[s.id] === s.value)
        && words.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("count").textContent =
      count === rows.length ? `${count} results` : `${count} of ${rows.length} results`;
    document.getElementById("none").hidden = count > 0;
  }

  function read() {
    const state = new URLSearchParams(location.hash.slice(1));
    search.value = state.get("q") || "";
    for (const select of selects) {
      const wanted = state.get(select.id) || "";
      select.value = [...select.options].some((o) => o.value === wanted) ? wanted : "";
    }
    const key = state.get("sort") || "";
    const known = heads.some((head) => head.dataset.key === key);
    sort = { key: known ? key : "", descending: state.get("dir") === "desc" };
    order();
    filter();
  }

  function write() {
    const state = new URLSearchParams();
    if (sort.key) {
      state.set("sort", sort.key);
      state.set("dir", sort.descending ? "desc" : "asc");
    }
    for (const control of [...selects, search]) {
      if (control.value) state.set(control.id, control.value);
    }
    history.replaceState(null, "", `#${state}`);
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const again = sort.key === head.dataset.key;
      sort = { key: head.dataset.key, descending: again ? !sort.descending : numeric(head) };
      order();
      write();
    });
  }
  form.addEventListener("input", () => { filter(); write(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const control of [...selects, search]) control.value = "";
    filter();
    write();
  });
  addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
