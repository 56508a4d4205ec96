from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import pytest

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Add, Embed, Flatten, Linear, Mul, Norm, Unflatten
from regraft.ir.ops.pos import Rope

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Complaints = list[str]

LOCAL = ("file:", "data:", "about:", "blob:")

WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY = 32, 4, 2, 8, 64, 100


def _layer(b: Builder, n: int, inputs: Sequence[Value], window: int | None, memory: Value | None) -> Sequence[Value]:
    x, pos = inputs
    weights = f"model.layers.{n}"
    with b.scope("attn"):
        q_proj = b(Linear, "q_proj", x, b.weight(f"{weights}.self_attn.q_proj.weight", HEADS * HEAD, WIDTH))
        q = b(Unflatten, "q", q_proj, parts=HEADS)
        q = b(Norm, "q_norm", q, weight=b.weight(f"{weights}.self_attn.q_norm.weight", HEAD), eps=1e-6)
        q = b(Rope, "q_rope", q, pos, base=1e4, channels=HEAD)
        if memory is None:
            rows: list[Value] = []
            for name in ("k", "v"):
                weight = b.weight(f"{weights}.self_attn.{name}_proj.weight", KV_HEADS * HEAD, WIDTH)
                rows.append(b(Unflatten, name, b(Linear, f"{name}_proj", x, weight), parts=KV_HEADS))
            memory = b(KV, "memory", *rows, window=window)
        ctx = b(Flatten, "merged", b(Attend, "ctx", q, memory, scale=0.5, window=window))
        y = b(Linear, "out", ctx, b.weight(f"{weights}.self_attn.o_proj.weight", WIDTH, HEADS * HEAD))
        x = b(Add, "residual", x, y)
    with b.scope("mlp"):
        gate = b(Linear, "gate", x, b.weight(f"{weights}.mlp.gate_proj.weight", HIDDEN, WIDTH))
        up = b(Linear, "up", x, b.weight(f"{weights}.mlp.up_proj.weight", HIDDEN, WIDTH))
        hidden = b(Mul, "hidden", b(Activation, "act", gate, kind="silu"), up)
        y = b(Linear, "out", hidden, b.weight(f"{weights}.mlp.down_proj.weight", WIDTH, HIDDEN))
    return [b(Add, "out", x, y)]


@pytest.fixture
def tiny() -> Graph:
    """Return four layers, tied: 0 full, 1 and 2 with a window of 16, 3 reading layer 0's memory."""
    graph = Graph("tiny", {"family": "qwen3", "dtype": "bf16", "vocab": VOCABULARY, "context": 512})
    b = Builder(graph, "bf16")
    tokens, pos = b.tokens()
    table = b.weight("model.embed_tokens.weight", VOCABULARY, WIDTH)
    x = b(Embed, "embed", tokens, table)
    for n, window in enumerate((None, 16, 16, None)):
        donor = graph["layers.0.attn.memory"] if n == 3 else None
        with b.scope(f"layers.{n}"):
            x = _layer(b, n, [x, pos], window, donor)[0]
    graph.set_outputs([b(Linear, "logits", x, table)])
    graph.verify()
    return graph


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    """Start the system's chromium, without a window, with a profile of its own."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is not on the PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def complaints() -> Complaints:
    """Return what the test's page complained of so far; whatever is left at its end fails the test."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: Complaints) -> Generator[Page]:
    """Return an empty page of 1280 × 800, offline. Errors on its console and requests for anything but files fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    shown = context.new_page()
    shown.set_default_timeout(10_000)
    shown.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    shown.on("request", lambda asked: None if asked.url.startswith(LOCAL) else complaints.append(f"asked: {asked.url}"))
    yield shown
    context.close()
    assert complaints == []
