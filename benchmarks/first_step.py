"""How many functions and files of ours one verb runs; for train also the forwards before its first step.

    python -m benchmarks.first_step [train|heal|export|compress ...]

Each verb runs once on a tiny model, in a process under `sys.setprofile`; lambdas, comprehensions and bodies of
modules and classes do not count. What a verb needs of another is made before it without the profiler.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tiny import save_tiny

PROFILE = """
import json, runpy, sys, threading
import shears
root, out, *words = sys.argv[1:]
functions, forwards, begun = set(), [0], [False]
def look(frame, event, argument):
    code = frame.f_code
    if event != "call":
        return
    if code.co_filename.startswith(root) and not code.co_name.startswith("<") and code.co_flags & 2:
        functions.add((code.co_filename, code.co_qualname))
    elif code.co_name == "training_step" and code.co_filename.endswith("transformers/trainer.py"):
        begun[0] = True
    elif code.co_name == "forward" and "ForCausalLM" in code.co_qualname and not begun[0]:
        forwards[0] += 1
sys.argv = ["shears", *words]
threading.setprofile(look)
sys.setprofile(look)
try:
    runpy.run_module("shears", run_name="__main__")
except SystemExit as end:
    code = end.code
sys.setprofile(None)
files = len({file for file, _ in functions})
json.dump({"code": code, "functions": len(functions), "files": files, "forwards": forwards[0]}, open(out, "w"))
"""


def commands(work: Path, text: Path) -> dict[str, list[str]]:
    """Return the words of each verb; a verb reads what those before it wrote."""
    model = str(save_tiny(work / "tiny"))
    sparse, adapter = f"{work}/sparse", f"{work}/train"
    lines = [
        f"sparsify {model} {sparse} --method magnitude",
        f"train {model} {adapter} --data arithmetic:train --max-steps 2 --warmup-steps 0",
        f"heal {sparse} {work}/heal --teacher {model} --data {text} --tokens 1k --sequence-length 64",
        f"export {adapter} {work}/export --format package",
        f"compress {model} {work}/compress --calibration {text} --target 9bits --dry-run",
    ]
    return {words[0]: words for words in map(str.split, lines)}


def main() -> None:
    """Run the verbs and print the table."""
    root = Path(__file__).parents[1]
    needed = {"sparsify": "heal", "train": "export"}  # what another verb reads
    wanted = sys.argv[1:] or ["train", "heal", "export", "compress"]
    print("| verb | functions | files | forwards before the first step |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = work / "text.txt"
        text.write_text((root / "ARCHITECTURE.md").read_text(encoding="utf-8"), encoding="utf-8")
        for verb, words in commands(work, text).items():
            if verb in wanted or needed.get(verb) in wanted:
                out = work / f"{verb}.json"
                asked = [sys.executable, "-c", PROFILE, str(root / "src"), str(out), *words]
                subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)
                seen = json.loads(out.read_text())
                if verb in wanted:
                    forwards = seen["forwards"] if verb in ("train", "heal") else ""
                    failed = f" (exit code {seen['code']})" if seen["code"] else ""
                    print(f"| {verb}{failed} | {seen['functions']} | {seen['files']} | {forwards} |", flush=True)


if __name__ == "__main__":
    main()
