"use strict";
(() => {
  const all = (query, root = document) => Array.from(root.querySelectorAll(query));
  const one = (query, root = document) => root.querySelector(query);
  const data = JSON.parse(one("#data").textContent);
  const text = (index) => data.texts[index];
  const panel = one("#panel"), about = one("#about"), search = one("#search"), found = one("#found");
  const shown = () => one(".step:not([hidden])");
  let opened = null, came = null;

  const make = (name, content, className) => {
    const element = document.createElement(name);
    if (content !== undefined) element.textContent = content;
    if (className) element.className = className;
    return element;
  };

  // -- numbers, as the rest of the page has them

  const steps = (value, table) => {
    const [step, unit] = table.find(([least]) => Math.abs(value) >= least) || [1, table[table.length - 1][1]];
    if (step === 1) return `${value}${unit}`;
    const scaled = value / step;
    return `${scaled.toFixed(Math.max(0, 3 - String(Math.trunc(Math.abs(scaled))).length))}${unit}`;
  };
  const count = (value) => steps(value, [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e3, " k"], [1, ""]]);
  const size = (value) => steps(value, [[2 ** 40, " TiB"], [2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"], [1, " B"]]);
  const flops = (value) => steps(value, [[1e12, " TFLOP"], [1e9, " GFLOP"], [1e6, " MFLOP"], [1e3, " kFLOP"], [1, " FLOP"]]);

  // -- pictures that stand once and are shown several times

  const open = (details) => {
    details.open = true;
    fill(details);
  };
  const fill = (details) => {
    for (const place of all("[data-same]", details)) {
      const source = one(`[data-graph="${place.dataset.same}"]`);
      place.append(one("svg", source).cloneNode(true));
      place.setAttribute("role", "region");
      place.setAttribute("aria-label", source.getAttribute("aria-label"));
      place.tabIndex = 0;
      delete place.dataset.same;
    }
    const first = one(".op", details);
    if (first && !one('.op[tabindex="0"]', details)) first.setAttribute("tabindex", "0");
  };
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.("details")) {
      if (event.target.open) fill(event.target);
      const kinds = all("details", shown());
      const every = kinds.every((each) => each.open);
      one("#fold").textContent = every ? "Close all" : "Open all";
      one("#fold").setAttribute("aria-pressed", String(every));
    }
  }, true);

  const foldAll = () => {
    const kinds = all("details", shown());
    const every = kinds.every((each) => each.open);
    for (const each of kinds) {
      if (every) each.open = false;
      else open(each);
    }
  };

  // -- an operation's facts

  const rows = (title, pairs) => {
    if (!pairs.length) return;
    about.append(make("h3", title));
    const list = make("dl");
    for (const [name, ...values] of pairs) {
      list.append(make("dt", name));
      const cell = make("dd");
      values.filter(Boolean).forEach((value, i) => {
        if (i) cell.append(document.createElement("br"));
        cell.append(value instanceof Node ? value : make("code", value));
      });
      list.append(cell);
    }
    about.append(list);
  };

  const jump = (card, section, name) => {
    const index = section[2].findIndex((node) => node[3].some((result) => result[0] === name));
    if (index < 0) return make("code", text(name));
    const button = make("button", text(name), "jump");
    button.type = "button";
    button.addEventListener("click", () => take({card, index}));
    return button;
  };

  const tell = (card, section, node) => {
    const [id, opname, , results, operands, weights, attributes, cost, times] = node;
    about.replaceChildren(make("h2", text(id)));
    about.append(make("p", `${text(opname)} in ${text(section[1])}${times > 1 ? `, ${times} times` : ""}`, "lead"));
    about.append(make("p", data.about[opname]));
    rows("Gives", results.map(([name, type]) => [text(name), text(type)]));
    rows("Reads", operands.map(([slot, name, type]) => [text(slot), jump(card, section, name), text(type)]));
    const given = new Set(results.map(([name]) => name));
    const readers = section[2].flatMap((other) => other[4].filter((each) => given.has(each[1])).map(([slot]) => [text(slot), jump(card, section, other[3][0][0])]));
    rows("Read by, as", readers);
    rows("Weights", weights.map(([slot, name, type, elements, bytes, made]) => [
      text(slot), text(name), `${text(type)}, ${count(elements)} numbers, ${size(bytes)}`, text(made) && `made by ${text(made)}`,
    ]));
    rows("Attributes", attributes.map(([key, value]) => [text(key), text(value)]));
    const [work, read, kept, held] = cost;
    const costs = [["computes", work, flops], ["reads of weights", read, size], ["reads of memory", kept, size], ["memory holds", held, size]];
    rows("For one token at 4,096, one layer", costs.filter(([, value]) => value).map(([what, value, spell]) => [what, spell(value)]));
  };

  const mark = (op) => {
    for (const each of all('.op[aria-pressed="true"]')) each.removeAttribute("aria-pressed");
    if (op) op.setAttribute("aria-pressed", "true");
  };

  const show = (op, focus = true) => {
    const card = op.closest(".card"), section = data.sections[card.dataset.section];
    tell(card, section, section[2][op.dataset.op]);
    mark(op);
    opened = op;
    came = op;
    panel.hidden = false;
    panel.scrollTop = 0;
    if (focus) panel.focus({preventScroll: true});
  };

  const hide = () => {
    if (panel.hidden) return;
    panel.hidden = true;
    mark(null);
    opened = null;
    came?.focus({preventScroll: true});
  };

  document.addEventListener("click", (event) => {
    const op = event.target.closest(".op");
    if (op) show(op, false);
    else if (event.target.closest("#close")) hide();
    const cell = event.target.closest(".cell");
    if (cell) {
      event.preventDefault();
      reveal(one(cell.getAttribute("href")));
    }
  });

  const reveal = (card) => {
    const details = one("details", card);
    if (details) open(details);
    card.scrollIntoView({block: "start"});
    history.replaceState(null, "", `#${card.id}`);
    one("summary", card)?.focus({preventScroll: true});
  };

  // -- moving among operations and layers

  const near = (ops, from, key) => {
    const box = (each) => {
      const {x, y, width, height} = each.getBoundingClientRect();
      return [x + width / 2, y + height / 2];
    };
    const [x, y] = box(from);
    const across = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    let best = null, least = Infinity;
    for (const each of ops) {
      const [ex, ey] = box(each);
      const ahead = sign * (across ? ex - x : ey - y), aside = Math.abs(across ? ey - y : ex - x);
      if (each !== from && ahead > 4 && ahead + 3 * aside < least) {
        best = each;
        least = ahead + 3 * aside;
      }
    }
    return best;
  };

  const step = (from, to) => {
    if (!to) return;
    from.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
    to.scrollIntoView({block: "nearest", inline: "nearest"});
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search]");
    if (event.key === "Escape") {
      hide();
      one("#keys").hidden = true;
      if (typing) search.blur();
      close();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const op = event.target.closest(".op"), cell = event.target.closest(".cell");
    if (event.key.startsWith("Arrow") && (op || cell)) {
      const group = all(op ? ".op" : ".cell", (op || cell).closest("svg"));
      step(op || cell, near(group, op || cell, event.key));
    } else if (op && (event.key === "Enter" || event.key === " ")) show(op);
    else if (event.key === "/") search.focus();
    else if (event.key === "o") foldAll();
    else if (event.key === "t") theme();
    else if (event.key === "?") help();
    else if (event.key === "[" || event.key === "]") turn(Number(slider?.value) + (event.key === "]" ? 1 : -1));
    else return;
    event.preventDefault();
  });

  // -- search

  const entries = () => all(".card", shown()).flatMap((card) => {
    const section = data.sections[card.dataset.section];
    return section[2].map((node, index) => {
      const names = [text(node[0]), text(node[1]), text(node[2]), ...node[5].map((weight) => text(weight[1]))];
      return {card, index, name: text(node[0]), what: text(node[1]), key: card.dataset.key, names: names.join(" ").toLowerCase()};
    });
  });

  let hits = [], at = 0;
  const close = () => {
    found.hidden = true;
    search.setAttribute("aria-expanded", "false");
    search.removeAttribute("aria-activedescendant");
  };
  const choose = (index) => {
    at = index;
    all("li", found).forEach((each, i) => {
      each.setAttribute("aria-selected", String(i === at));
      if (i === at) each.scrollIntoView({block: "nearest"});
    });
    search.setAttribute("aria-activedescendant", `hit-${at}`);
  };
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    hits = wanted.length ? entries().filter((each) => wanted.every((word) => each.names.includes(word))).slice(0, 60) : [];
    found.replaceChildren(...hits.map((hit, i) => {
      const item = make("li");
      item.id = `hit-${i}`;
      item.setAttribute("role", "option");
      item.append(make("code", hit.name), make("span", `${hit.what} · ${hit.key}`));
      item.addEventListener("mousedown", (event) => {
        event.preventDefault();
        take(hit);
      });
      return item;
    }));
    if (wanted.length && !hits.length) found.append(make("li", "nothing found"));
    found.hidden = !wanted.length;
    search.setAttribute("aria-expanded", String(!found.hidden));
    if (hits.length) choose(0);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && hits.length) take(hits[at]);
    else if (event.key === "ArrowDown" && hits.length) choose((at + 1) % hits.length);
    else if (event.key === "ArrowUp" && hits.length) choose((at + hits.length - 1) % hits.length);
    else return;
    event.preventDefault();
  });
  search.addEventListener("blur", close);

  const take = (hit) => {
    close();
    const details = one("details", hit.card);
    open(details);
    const op = one(`[data-op="${hit.index}"]`, details);
    op.scrollIntoView({block: "center", inline: "center"});
    const before = one('.op[tabindex="0"]', details);
    before?.setAttribute("tabindex", "-1");
    op.setAttribute("tabindex", "0");
    op.focus({preventScroll: true});
    show(op, false);
  };

  // -- passes

  const slider = one("#step");
  const turn = (index) => {
    if (!slider || index < 0 || index > Number(slider.max)) return;
    const keys = new Set(all("details[open]", shown()).map((each) => each.closest(".card").dataset.key));
    for (const each of all(".step")) each.hidden = Number(each.dataset.step) !== index;
    for (const card of all(".card", shown())) {
      if (keys.has(card.dataset.key)) open(one("details", card));
      else one("details", card).open = false;
    }
    slider.value = index;
    all("[data-go]").forEach((each, i) => {
      if (i === index) each.setAttribute("aria-current", "step");
      else each.removeAttribute("aria-current");
      if (i === index) slider.setAttribute("aria-valuetext", each.textContent);
      if (i === index) each.parentElement.scrollLeft = each.offsetLeft - each.parentElement.offsetLeft - 40;
    });
    hide();
  };
  slider?.addEventListener("input", () => turn(Number(slider.value)));
  for (const each of all("[data-go]")) each.addEventListener("click", () => turn(Number(each.dataset.go)));

  // -- light and dark

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { one("#theme").textContent = isDark() ? "Light" : "Dark"; };
  const theme = () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  };
  one("#theme").addEventListener("click", theme);
  dark.addEventListener("change", label);
  label();

  // -- a kind shows its layers

  const light = (card) => {
    const key = card?.dataset.key;
    for (const cell of all(".cell", shown())) cell.classList.toggle("dim", Boolean(key) && cell.dataset.kind !== key);
  };
  for (const card of all('.card[id]')) {
    one("h3", card).addEventListener("pointerenter", () => light(card));
    one("h3", card).addEventListener("pointerleave", () => light(null));
  }

  // -- the rest of the bar

  const help = () => {
    one("#keys").hidden = !one("#keys").hidden;
    one("#help").setAttribute("aria-expanded", String(!one("#keys").hidden));
  };
  one("#help").addEventListener("click", help);
  one("#fold").addEventListener("click", foldAll);
  const current = one("[data-go][aria-current]");
  if (current) current.parentElement.scrollLeft = current.offsetLeft;
  const start = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (start && start.matches(".card")) reveal(start);
  document.documentElement.dataset.ready = "true";
})();
