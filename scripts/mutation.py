"""Change the adaptation's code in one place at a time and see whether the tests notice.

``python scripts/mutation.py 300 --report mutation.md``: a sample of the mutants that cosmic-ray (``pip install
cosmic-ray``) makes of ``aire_nerfstudio/adaptation``, each in a copy of the sources, with the tests of that room.
Mutants of annotations and docstrings, which nothing executes, are not counted. Tests that do not end count as noticing.
"""

import argparse
import ast
import collections
import difflib
import importlib
import importlib.util
import io
import multiprocessing
import os
import queue
import random
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.dont_write_bytecode = True  # a mutant of the same length and second would be taken for the one before it

ROOT = Path(__file__).resolve().parent.parent
ROOM = "aire_nerfstudio/adaptation"
# Nothing that loads nerfstudio's plugins, of which the installed package is one: the copies are what is to be tested.
PRELOADED = ("torch", "pytest", "hypothesis", "nerfstudio.models.base_model", "torch_pruning")
ELSEWHERE = 77
# Quick ones first; those named after a module come before all others for its mutants.
TESTS = ("surgery", "decay", "budget", "frequencies", "aire_strategy", "variants", "rounds", "control")
NEAREST = {
    **{"rounds": ("rounds",), "target_psnr": ("rounds",), "control": ("control",), "importance": ("decay",)},
    **{"rigl": ("variants",), "zell": ("variants",), "depgraph": ("variants",), "variants": ("variants",)},
    **{"aire": ("aire_strategy", "control"), "aire_config": ("aire_strategy", "budget"), "none": ("variants",)},
    **{"schedule": ("aire_strategy",), "compensation": ("variants", "decay"), "passive": ("variants",)},
    **{f"aire_{part}": ("aire_strategy", "control") for part in ("scheduled", "plan", "state")},
    **{"densification": ("aire_strategy", "frequencies"), "layers": ("aire_strategy", "budget")},
}


def mutants(count, seed, only):
    """A random sample of at most ``count`` mutants (0: all), as (module, line, operator, source); places there are."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    places, sources = [], {}
    for path in sorted((ROOT / ROOM).glob(only or "*.py")):
        sources[path.name] = source = path.read_text("utf8")
        nodes = list(ast_nodes(get_ast(source)))
        for name in operator_names():
            if get_operator(name).arguments():
                continue
            found = [at for node in nodes for at in get_operator(name)().mutation_positions(node)]
            places += [(path.name, start[0], name, occurrence) for occurrence, (start, _) in enumerate(found)]
    random.Random(seed).shuffle(places)
    sample = []
    for module, line, name, occurrence in places:
        if count and len(sample) == count:
            break
        changed = mutate_code(sources[module], get_operator(name)(), occurrence)
        if changed is not None and _executed(changed) != _executed(sources[module]):
            sample.append((module, line, name.removeprefix("core/"), changed))
    return sample, len(places)


def _executed(source):
    """What of a module is run: its tree without annotations and docstrings; None where it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _test(folder, files):
    """Exit status of the tests, in this process."""
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(folder)
    sys.path[:0] = [folder, f"{folder}/tests"]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-p", "no:xdist", "--hypothesis-seed=0"]
    with redirect_stdout(io.StringIO()):
        status = pytest.main([*options, *(f"tests/test_{name}.py" for name in files)])
    tested = sys.modules.get("aire_nerfstudio.adaptation.surgery") or sys.modules.get("aire_nerfstudio")
    if tested is not None and not str(tested.__file__).startswith(folder):
        os._exit(ELSEWHERE)
    os._exit(int(status))


def verdict(folder, module, limit):
    """``killed``, ``survived`` or ``timed out`` of the sources in ``folder``."""
    first = NEAREST.get(module.removesuffix(".py"), ())
    files = [*first, *(name for name in TESTS if name not in first)]
    process = multiprocessing.get_context("fork").Process(target=_test, args=(folder, files))
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "timed out"
    if process.exitcode == ELSEWHERE:
        return "not tested: another copy of the package was imported"
    return "survived" if process.exitcode == 0 else "killed"


def _work(folder, jobs, answers, limit):
    # Once, for all the processes to be forked from here.
    for name in PRELOADED:
        importlib.import_module(name)
    while (job := jobs.get()) is not None:
        number, module, source = job
        path = Path(folder, ROOM, module)
        original = path.read_text("utf8")
        if source is not None:
            path.write_text(source, "utf8")
        answers.put((number, verdict(folder, module, limit)))
        path.write_text(original, "utf8")


def _copy(folder):
    for name in ("aire_nerfstudio", "method_configs", "tests", "pyproject.toml"):
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "method_configs" if name == "aire_nerfstudio" else "")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    (folder / "aire_nerfstudio" / "method_configs").symlink_to(folder / "method_configs")


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="mutants to try; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of one mutant")
    parser.add_argument("--only", help="one module, such as surgery.py")
    parser.add_argument("--report", type=Path, help="Markdown file for the table and the survivors")
    given = parser.parse_args()
    if given.count < 0 or given.workers < 1:
        parser.error("the count must be 0 or more and --workers at least 1")
    if importlib.util.find_spec("cosmic_ray") is None:
        sys.exit("error: cosmic-ray is not installed; pip install cosmic-ray")
    sample, places = mutants(given.count, given.seed, given.only)
    print(f"{len(sample)} mutants of {places} places", flush=True)
    spawn = multiprocessing.get_context("spawn")
    jobs, answers, began = spawn.Queue(), spawn.Queue(), time.monotonic()
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top, str(index)) for index in range(given.workers)]
        for folder in folders:
            folder.mkdir()
            _copy(folder)
        # Unchanged, the tests must pass; without surgery they must not.
        jobs.put((-1, "surgery.py", None))
        jobs.put((-2, "surgery.py", "prune = grow = mask = None\n"))
        for number, (module, _, _, source) in enumerate(sample):
            jobs.put((number, module, source))
        for _ in folders:
            jobs.put(None)
        workers = [spawn.Process(target=_work, args=(str(f), jobs, answers, given.limit)) for f in folders]
        for worker in workers:
            worker.start()
        verdicts = {}
        while len(verdicts) < len(sample) + 2:
            try:
                number, said = answers.get(timeout=given.limit + 120)
            except queue.Empty:
                for worker in workers:
                    worker.kill()
                jobs.cancel_join_thread()
                sys.exit("error: the workers have ended; is torch-pruning installed (bash scripts/setup.sh)?")
            verdicts[number] = said
            if said != {-1: "survived", -2: "killed"}.get(number, said) or said.startswith("not tested"):
                for worker in workers:
                    worker.kill()
                jobs.cancel_join_thread()
                what = {-1: "the code as it is", -2: "code without surgery"}.get(number, "a mutant")
                sys.exit(f"error: of {what} the tests say: {said}; mend that first")
            if number >= 0:
                module, line, operator, _ = sample[number]
                took = time.monotonic() - began
                left = took / len(verdicts) * (len(sample) + 2 - len(verdicts))
                done = f"{sum(n >= 0 for n in verdicts)}/{len(sample)}"
                print(f"{done} {said}: {module}:{line} {operator} ({left:.0f} s left)", flush=True)
        for worker in workers:
            worker.join()
    text = _report(sample, verdicts)
    print(text)
    if given.report:
        given.report.write_text(text, "utf8")
    return int(any(verdicts[number] == "survived" for number in range(len(sample))))


def _report(sample, verdicts):
    by_module = collections.defaultdict(collections.Counter)
    survivors = []
    for number, (module, line, operator, source) in enumerate(sample):
        by_module[module][verdicts[number]] += 1
        if verdicts[number] == "survived":
            original = (ROOT / ROOM / module).read_text("utf8")
            changed = [d for d in difflib.ndiff(original.splitlines(), source.splitlines()) if d[0] in "-+"]
            survivors.append("\n".join([f"{module}:{line} {operator}", *changed]))
    rows = ["| module | mutants | noticed | of these by not ending | survived |", "|---|---|---|---|---|"]
    total = sum(by_module.values(), collections.Counter())
    for name, counts in [*sorted(by_module.items()), ("all", total)]:
        tried, lived = sum(counts.values()), counts["survived"]
        noticed = f"{tried - lived} ({100 * (tried - lived) / max(1, tried):.0f} %)"
        rows.append(f"| {name} | {tried} | {noticed} | {counts['timed out']} | {lived} |")
    return "\n".join([*rows, "", *(f"```\n{survivor}\n```" for survivor in sorted(survivors)), ""])


if __name__ == "__main__":
    sys.exit(main())
