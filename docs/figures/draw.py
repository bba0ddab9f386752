"""Draw the figures of docs/: `python docs/figures/draw.py` writes them beside this file.

Each figure is 520 units wide, so that its text can be read on a phone, and has colours for light and dark pages.
"""

import math
import random
import re
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

WIDTH = 520
TABLES = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-29-results.md"
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2933 }
.small { font-size: 12px; fill: #52606d }
.bold { font-weight: 600 }
.mid { text-anchor: middle }
.kept { fill: #3f72af } .zero { fill: #dde3ea } .lora { fill: #d9772b } .half { fill: #eebb8f } .good { fill: #2f8f63 }
.box { fill: none; stroke: #8a97a6 } .line { fill: none; stroke: #52606d; stroke-width: 1.5 }
.strong { fill: none; stroke: #d9772b; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8ecf1 } .small { fill: #aab4c0 }
  .kept { fill: #6fa3e0 } .zero { fill: #39424e } .lora { fill: #f09a56 }
  .half { fill: #8a5a33 } .good { fill: #56c394 }
  .box { stroke: #7b8794 } .line { stroke: #aab4c0 } .strong { stroke: #f09a56 }
}
"""


def svg(height: int, title: str, parts: Iterable[str]) -> str:
    """Return a figure; its title is what a screen reader says."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">\n<title>{title}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text whose baseline begins at (x, y), or has its middle there with kind `mid`."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" class="{kind}"/>'


def arrow(x: float, y: float, length: float) -> str:
    """Return an arrow to the right, or to the left if the length is negative."""
    end, tip = x + length, 5 if length > 0 else -5
    return f'<path d="M{x:g} {y:g}H{end:g}m{-tip:g} -4l{tip:g} 4l{-tip:g} 4" class="line"/>'


def grid(x: float, y: float, side: float, cells: list[list[str]]) -> list[str]:
    """Return a matrix of squares, one kind a cell."""
    return [
        rect(x + column * side, y + row * side, side - 2, side - 2, kind)
        for row, kinds in enumerate(cells)
        for column, kind in enumerate(kinds)
    ]


def sparse_cells(rows: int, columns: int, seed: int) -> list[list[str]]:
    """Return a matrix in which half of every row is zero."""
    draw = random.Random(seed)
    return [draw.sample(["kept", "zero"] * (columns // 2), columns) for _ in range(rows)]


def pipeline() -> str:
    """The four stages and what each leaves behind."""
    names = (("Prune", "half of the", "weights is 0"), ("Train", "LoRA at", "many ranks"),
             ("Search", "the best rank", "of each group"), ("Export", "one ordinary", "PEFT adapter"))  # fmt: skip
    parts = []
    for index, (name, *lines) in enumerate(names):
        x = 5 + index * 132
        parts += [rect(x, 5, 114, 150, "box"), text(x + 57, 28, name, "bold mid")]
        parts += [text(x + 57, 128 + 16 * row, line, "small mid") for row, line in enumerate(lines)]
        parts += [arrow(x + 117, 75, 12)] if index < 3 else []
    parts += grid(30, 42, 11, sparse_cells(6, 6, 1))
    for row, (width, kind) in enumerate(((12, "lora"), (8, "lora"), (4, "lora"))):
        parts += [rect(160 + 32 * row, 42, width + 4, 64, "half"), rect(160 + 32 * row, 42, width, 64, kind)]
    for index, height in enumerate((40, 60, 40, 20, 60, 40)):
        parts.append(rect(290 + index * 12, 106 - height, 9, height, "lora"))
    parts += [*grid(414, 50, 9, sparse_cells(6, 6, 1)), text(474, 82, "+"), rect(486, 50, 8, 54, "lora")]
    return svg(160, "A model is pruned, an adapter is trained at many ranks, searched and exported.", parts)


def pruning() -> str:
    """Wanda: weights times input norms give scores; the lower half of each row becomes zero."""
    weights = [[3, 1, 4, 2, 6, 1], [2, 5, 1, 6, 1, 3], [4, 2, 3, 1, 2, 5]]
    norms = [1, 3, 1, 2, 1, 2]
    scores = [[w * n for w, n in zip(row, norms, strict=True)] for row in weights]
    parts = [text(10, 24, "weights |W|", "bold"), text(10, 130, "input norms ‖X‖", "bold")]
    parts += numbers(10, 36, weights, None) + numbers(10, 142, [norms], None)
    parts += [text(182, 76, "&#215;", "mid"), arrow(200, 76, 24), text(240, 24, "scores |W| ‖X‖", "bold")]
    parts += numbers(240, 36, scores, scores)
    parts += [
        arrow(412, 76, 20),
        *grid(440, 40, 12, [["kept" if kept else "zero" for kept in kept_of(row)] for row in scores]),
    ]
    parts += [text(440, 24, "mask", "bold"), text(240, 130, "Each row drops the half with the", "small")]
    parts += [text(240, 148, "lowest scores. A weight of 2 with a", "small")]
    parts += [text(240, 166, "large input outlives a weight of 3.", "small")]
    return svg(180, "Weights times input norms give scores; in each row the lower half becomes zero.", parts)


def kept_of(row: list[int]) -> list[bool]:
    """Tell which half of a row's scores is kept; the first of two equal ones."""
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))
    return [order.index(index) < len(row) // 2 for index in range(len(row))]


def numbers(x: float, y: float, rows: list[list[int]], scores: list[list[int]] | None) -> list[str]:
    """Return a matrix of numbers; where scores are given, the pruned ones are faint."""
    parts = []
    for row, column in product(range(len(rows)), range(len(rows[0]))):
        is_kept = scores is None or kept_of(scores[row])[column]
        left, top = x + column * 26, y + row * 24
        parts += [rect(left, top, 24, 22, "box" if is_kept else "zero")]
        parts += [text(left + 12, top + 16, str(rows[row][column]), "mid bold" if is_kept and scores else "mid small")]
    return parts


def nls() -> str:
    """A linear with an elastic adapter: rank r uses the first rows of A and the first columns of B."""
    parts = [text(70, 22, "frozen Wᵖ", "bold mid"), *grid(10, 32, 15, sparse_cells(8, 8, 3))]
    parts += [text(150, 98, "+", "mid"), text(202, 22, "B", "bold mid"), text(330, 22, "A", "bold mid")]
    for index, kind in enumerate(("lora", "lora", "half", "zero")):
        parts += [rect(172 + index * 15, 32, 13, 118, kind), rect(260, 60 + index * 15, 140, 13, kind)]
    parts += [
        text(412, 86, "ranks 1 to 16", "small"),
        text(412, 102, "17 to 24", "small"),
        text(412, 117, "25 to 32", "small"),
    ]
    parts += [text(10, 186, "Step 1"), text(10, 212, "Step 2"), text(10, 238, "Step 3")]
    draw = random.Random(4)
    for row in range(3):
        for group in range(12):
            rank = draw.choice((16, 24, 32))
            parts += [rect(70 + group * 34, 174 + row * 26, 32, 18, "zero")]
            parts += [rect(70 + group * 34, 174 + row * 26, rank, 18, "lora")]
    parts += [text(70, 264, "a bar is a group of linears: each step draws 16, 24 or 32 for every group", "small")]
    return svg(
        274, "Rank r uses the first r columns of B and rows of A; each step draws a rank for every group.", parts
    )


def recovery() -> str:
    """What pruning took away, split into components, the largest first."""
    cells = sparse_cells(6, 6, 5)
    gone = [["lora" if kind == "zero" else "zero" for kind in row] for row in cells]
    dense = [["kept"] * 6 for _ in range(6)]
    parts = [text(44, 22, "dense W", "bold mid"), *grid(10, 32, 12, dense), text(96, 72, "&#8722;", "mid")]
    parts += [text(146, 22, "pruned Wᵖ", "bold mid"), *grid(110, 32, 12, cells), text(198, 72, "=", "mid")]
    parts += [text(248, 22, "removed", "bold mid"), *grid(213, 32, 12, gone), arrow(294, 68, 20)]
    parts += [text(420, 22, "components by size", "bold mid")]
    for index in range(16):
        height = 72 * 0.84**index
        kind = "lora" if index < 8 else "half" if index < 12 else "zero"
        parts.append(rect(325 + index * 12, 104 - height, 9, height, kind))
    parts += [text(10, 132, "The first 32 components are the adapter's start. Ranks are nested: the first 24", "small")]
    parts += [text(10, 150, "of them are the best adapter of rank 24, the first 16 the best of rank 16.", "small")]
    return svg(
        160, "Dense minus pruned weights are split into components; the largest become the adapter's start.", parts
    )


def search() -> str:
    """A neighbour changes one group; the front of loss and size."""
    parts = [text(10, 22, "a configuration and a neighbour", "bold")]
    for row, ranks in enumerate(((24, 24, 16, 24, 32, 24), (24, 24, 16, 32, 32, 24))):
        y = 40 + row * 56
        for group, rank in enumerate(ranks):
            kind = "good" if row == 1 and group == 3 else "lora"
            parts += [rect(10 + group * 38, y, 34, 32, "zero"), rect(10 + group * 38, y + 32 - rank, 34, rank, kind)]
    parts += [rect(8, 94, 112, 36, "strong"), text(10, 148, "below the change: computed once,", "small")]
    parts += [text(10, 164, "read from memory for neighbours", "small")]
    parts += [
        text(290, 22, "loss", "bold"),
        '<path d="M290 30V156H510" class="line"/>',
    ]
    front = ((300, 128 - 84), (330, 80), (372, 104), (430, 120), (490, 126))
    others = ((336, 58), (360, 66), (388, 78), (402, 92), (446, 88), (470, 104), (420, 62), (482, 74))
    parts += [f'<polyline points="{" ".join(f"{x},{y}" for x, y in front)}" class="strong"/>']
    parts += [f'<circle cx="{x}" cy="{y}" r="4" class="kept"/>' for x, y in others]
    parts += [f'<circle cx="{x}" cy="{y}" r="5" class="lora"/>' for x, y in front]
    parts += [text(340, 140, "Pareto front", "small"), text(418, 174, "parameters", "bold")]
    return svg(
        184,
        "A neighbour changes the rank of one group; the front holds what nothing else beats in loss and size.",
        parts,
    )


def kernels() -> str:
    """One group of a packed weight: mask word, kept values, the register they are expanded into."""
    bits = [1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1]
    kept = sum(bits)
    parts = [text(10, 22, "mask: 1 bit a weight", "bold"), text(10, 88, "kept values, one after the other", "bold")]
    for index, bit in enumerate(bits):
        x = 10 + index * 31
        parts += [rect(x, 32, 29, 24, "box"), text(x + 14, 49, str(bit), "mid" if bit else "mid small")]
        parts += [rect(x, 186, 29, 24, "kept" if bit else "zero")]
    for place, index in enumerate(index for index, bit in enumerate(bits) if bit):
        parts += [rect(10 + place * 31, 98, 29, 24, "kept")]
        parts += [f'<path d="M{24 + place * 31} 124L{24 + index * 31} 184" class="line"/>']
    parts += [text(10 + kept * 31 + 12, 115, "memory holds only these", "small")]
    parts += [
        text(10, 232, "In a register: the values in their places, zeros between them, times the inputs.", "small")
    ]
    return svg(242, "A mask word says where the kept values go; they are expanded in a register and multiplied.", parts)


def healing() -> str:
    """Perplexities of healed models beside the dense one, read from TABLES."""
    table = TABLES.read_text(encoding="utf-8")
    table = table[table.index("## Healing") :]
    rows = {
        "dense": "dense",
        "half pruned": "pruned, 50 %",
        "half healed": "healed, 50 %",
        "healed, then rounded to int4": "healed, then rounded to int4",
        "healed on the grid of int4": "healed on the grid of int4",
        "60 % pruned": "pruned, 60 %",
        "60 % healed": "healed, 60 %",
    }
    parts = []
    for index, (name, row) in enumerate(rows.items()):
        value = float(table[table.index(f"| {row} |") :].split("|")[3])
        y = 12 + index * 26
        kind = "lora" if "healed" in name else "kept" if name == "dense" else "half"
        width = value * 6.4
        parts += [text(10, y + 14, name, "small"), rect(200, y + 2, width, 16, kind)]
        parts += [text(206 + width, y + 15, f"{value:.1f}", "small")]
    bottom = 12 + len(rows) * 26
    caption = "WikiText-2 perplexity of SmolLM2-135M; half healed: on 400k tokens, others 100k"
    parts.append(text(10, bottom + 16, caption, "small"))
    return svg(bottom + 26, "WikiText-2 perplexity of the dense, the pruned and the healed models.", parts)


def ranks() -> str:
    """Accuracy over rank of one training, nested or sampled, and of LoRAs, read from TABLES."""
    table = TABLES.read_text(encoding="utf-8")
    start = table.index("## One training, every rank")
    rows = {
        "a LoRA of each rank": ("LoRAs", "kept", 0),
        "`--sampling nested`": ("nested", "lora", 12),
        "`--sampling uniform` (NLS)": ("uniform (NLS)", "half", 0),
    }
    parts = []
    for percent in (40, 50, 60, 70):
        y = 190 - (percent - 40) * 5.6
        parts += [f'<path d="M60 {y}h330" class="box"/>', text(20, y + 4, f"{percent} %", "small")]
    for index, rank in enumerate((8, 16, 24, 32)):
        parts.append(text(70 + index * 100, 210, f"rank {rank}", "small"))
    for name, (label, kind, below) in rows.items():
        cells = table[table.index(f"| {name} |", start) :].split("\n")[0].split("|")[2:6][::-1]
        points = [(85 + index * 100, 190 - (float(cell.split()[0]) - 40) * 5.6)
                  for index, cell in enumerate(cells) if cell.strip()]  # fmt: skip
        parts.append(f'<path d="M{" L".join(f"{x} {y:.1f}" for x, y in points)}" class="line"/>')
        parts += [f'<circle cx="{x}" cy="{y:.1f}" r="4" class="{kind}"/>' for x, y in points]
        parts.append(text(396, points[-1][1] + 2 + below, label, "small"))
    parts.append(text(10, 232, "SmolLM2-135M, half pruned, MAWPS, one epoch from PEFT's start", "small"))
    return svg(242, "Accuracy over rank: LoRAs of their own, one nested and one uniformly sampled training.", parts)


def four_bits() -> str:
    """Accuracy over the bytes of sparse packages and of llama.cpp's files, read from TABLES."""
    table = TABLES.read_text(encoding="utf-8")
    parts = []
    for panel, (start, title, (low, high), (least, most)) in enumerate(FOUR_BITS):
        top = 20 + panel * 236

        def across(megabytes: float, least: float = least, most: float = most) -> float:
            return 60 + math.log(megabytes / least, most / least) * 360

        def down(percent: float, top: float = top, low: int = low, high: int = high) -> float:
            return top + 180 - (percent - low) / (high - low) * 160

        parts.append(text(10, top, title, "bold"))
        for percent in range(low, high + 1, 5):
            parts += [f'<path d="M60 {down(percent):g}h400" class="box"/>']
            parts += [text(20, down(percent) + 4, f"{percent} %", "small")]
        body = table[table.index(start) :]
        for label, row in (*QUANTIZED.items(), *PACKAGES.items()):
            cells = body[body.index(f"| {row} |") :].split("\n")[0].split("|")
            value, worst, best = (down(float(number)) for number in re.findall(r"\d+\.\d", cells[2])[:3])
            x = across(float(cells[4]))
            kind, beside = ("kept", 5) if label in QUANTIZED else ("lora", -9 if label == "sparse int4" else 20)
            parts.append(f'<path d="M{x:.1f} {worst:.1f}V{best:.1f}" class="line"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{value:.1f}" r="5" class="{kind}"/>')
            parts.append(text(x + 8, value + beside, label, "small"))
        parts += [text(across(each), top + 200, f"{each} MB", "small") for each in (least, 2 * least, most)]
    bottom = 20 + len(FOUR_BITS) * 236
    parts.append(
        text(10, bottom - 12, "blue: dense + LoRA in llama.cpp's formats; orange: half of the weights, int4", "small")
    )
    return svg(bottom, "Accuracy over bytes: sparse packages beside the dense model in llama.cpp's formats.", parts)


QUANTIZED = {name: f"dense + LoRA, {name}" for name in ("bf16", "Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K")}
PACKAGES = {
    "sparse int4": "**the road, embeddings in int8**",
    "all int4": "**the road, embeddings in int4**",
}
FOUR_BITS = [
    ("## Trained for four bits", "SmolLM2-135M, MAWPS", (60, 90), (40, 300)),
    ("**Half a billion parameters** (", "Qwen2.5-Coder-0.5B, MAWPS", (70, 95), (200, 1300)),
]


FIGURES: dict[str, Callable[[], str]] = {
    draw.__name__: draw for draw in (pipeline, pruning, nls, recovery, healing, search, kernels, ranks, four_bits)
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(), encoding="utf-8")
