"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  const element = (name, parent, properties = {}) => {
    const made = Object.assign(document.createElement(name), properties);
    parent.append(made);
    return made;
  };

  // ---- tables: every header sorts, a box filters

  const numberOf = (cell) => Number.parseFloat(cell.dataset.v ?? cell.textContent.replace("−", "-").replace(/[▲▼] /, ""));

  const textOf = (cell) => (cell.textContent === "–" ? "" : cell.textContent);

  // Missing values come last in either direction.
  const compare = (a, b, sign) => {
    const [noA, noB] = [a === "" || Number.isNaN(a), b === "" || Number.isNaN(b)];
    if (noA || noB) return noA - noB;
    if (typeof a === "string") return sign * collator.compare(a, b);
    return a === b ? 0 : a < b ? -sign : sign;
  };

  const sort = (table, header) => {
    const column = header.cellIndex;
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    const key = header.classList.contains("n") ? numberOf : textOf;
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [key(row.cells[column]), row]);
    keyed.sort((a, b) => compare(a[0], b[0], ascending ? 1 : -1));
    body.append(...keyed.map((pair) => pair[1]));
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  };

  const addFilter = (table, box) => {
    const rows = [...table.tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const tools = document.createElement("div");
    tools.className = "tools";
    box.before(tools);
    const label = element("label", tools, { textContent: "Filter" });
    const input = element("input", label, { type: "search", autocomplete: "off", spellcheck: false });
    const told = element("output", tools);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        left += !row.hidden;
      });
      told.textContent = words.length ? `${left} of ${rows.length} rows` : "";
    });
  };

  for (const table of document.querySelectorAll("table.data")) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header));
    }
    if (table.tBodies[0].rows.length > 5) addFilter(table, table.parentElement);
  }

  // ---- charts: pointer or arrow keys choose a mark, its text is shown beside it

  const SVG = document.querySelector("svg").namespaceURI;

  const marksOf = (svg) =>
    [...svg.querySelectorAll(".marks use")]
      .map((use) => {
        const [name, figures] = use.textContent.split("\n");
        use.replaceChildren();
        const [x, y] = ["x", "y"].map((side) => Number.parseFloat(use.getAttribute(side)) / 100);
        return { name, figures, x, y };
      })
      .sort((a, b) => a.x - b.x || a.y - b.y);

  const enliven = (room) => {
    const svg = room.querySelector("svg");
    const marks = marksOf(svg);
    const tip = element("div", room, { className: "tip" });
    tip.setAttribute("role", "status");
    const name = element("b", element("bdi", tip));
    const figures = element("span", tip);
    const ring = document.createElementNS(SVG, "circle");
    ring.setAttribute("class", "ring");
    let current = -1;

    const hide = () => {
      tip.classList.remove("on");
      ring.remove();
    };

    const show = (index) => {
      current = index;
      const mark = marks[index];
      const [wide, high] = [room.clientWidth, room.clientHeight];
      name.textContent = mark.name;
      figures.textContent = mark.figures;
      ring.setAttribute("cx", `${100 * mark.x}%`);
      ring.setAttribute("cy", `${100 * mark.y}%`);
      ring.setAttribute("r", "8");
      svg.append(ring);
      const left = mark.x * wide - tip.offsetWidth / 2;
      tip.style.left = `${Math.max(0, Math.min(left, wide - tip.offsetWidth))}px`;
      const above = mark.y * high - tip.offsetHeight - 14;
      tip.style.top = `${above > -40 ? above : mark.y * high + 14}px`;
      tip.classList.add("on");
    };

    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      let [best, least] = [-1, 24 * 24];
      marks.forEach((mark, i) => {
        const across = mark.x * box.width - (event.clientX - box.left);
        const down = mark.y * box.height - (event.clientY - box.top);
        if (across * across + down * down < least) [best, least] = [i, across * across + down * down];
      });
      return best;
    };

    const point = (event) => {
      const index = nearest(event);
      if (index < 0) hide();
      else show(index);
    };

    const keys = { ArrowRight: () => current + 1, ArrowLeft: () => current - 1, Home: () => 0, End: () => marks.length - 1 };
    room.tabIndex = 0;
    room.setAttribute("role", "group");
    room.setAttribute("aria-label", `${svg.getAttribute("aria-label")}; arrow keys go from tensor to tensor`);
    room.addEventListener("pointermove", point);
    room.addEventListener("pointerdown", point);
    room.addEventListener("pointerleave", hide);
    room.addEventListener("focus", () => room.matches(":focus-visible") && show(Math.max(current, 0)));
    room.addEventListener("blur", hide);
    room.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      if (!(event.key in keys)) return;
      event.preventDefault();
      show(Math.max(0, Math.min(keys[event.key](), marks.length - 1)));
    });
  };

  for (const room of document.querySelectorAll(".chart .room")) enliven(room);

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll(".box details, .names, .warnings details")) details.open = true;
  });
})();
