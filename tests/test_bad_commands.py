"""Command lines that cannot be meant: one line, an exit status other than 0, nothing written. Run as typed."""

import pytest
import torch
from commands import run_command

IMAGE = ["ns-train", "aire-image-siren", "--vis", "tensorboard", "--machine.device-type", "cpu"]
NERF = ["ns-train", "aire-siren", "--vis", "tensorboard", "--machine.device-type", "cpu"]
SDF = ["ns-train", "aire-sdf-siren", "--vis", "tensorboard", "--machine.device-type", "cpu"]
FLOW = ["ns-train", "aire-flow-siren", "--vis", "tensorboard", "--machine.device-type", "cpu"]
MODEL, DATA, PLAN = "--pipeline.model.", "--pipeline.datamanager.", "--pipeline.model.adaptation."
REMOVAL = [f"{PLAN}decay-start", "20", f"{PLAN}prune-at", "60"]

BAD = {
    "picture not there": [*IMAGE, "--data", "none.png"],
    "picture is a folder": [*IMAGE, "--data", "."],
    "picture is text": [*IMAGE, "--data", "text.txt"],
    "picture is empty": [*IMAGE, "--data", "empty.png"],
    "no widths": [*IMAGE, f"{MODEL}widths"],
    "collider": [*NERF, f"{MODEL}enable-collider", "True"],
    "output into a file": [*IMAGE, "--output-dir", "text.txt"],
    "output into nowhere": [*IMAGE, "--output-dir", "/proc/none"],
    "rays of a surface": [*SDF, f"{DATA}train-num-rays-per-batch", "64"],
    "no layer": [*IMAGE, f"{MODEL}widths", "0"],
    "negative width": [*IMAGE, f"{MODEL}widths", "16", "-3"],
    "w0 is 0": [*IMAGE, f"{MODEL}first-omega", "0"],
    "w0 is no number": [*IMAGE, f"{MODEL}hidden-omega", "nan"],
    "w0 is infinite": [*SDF, f"{MODEL}first-omega", "inf"],
    "bias scale": [*IMAGE, f"{MODEL}first-bias-scale", "nan"],
    "average": [*IMAGE, f"{MODEL}ema-decay", "1"],
    "average is no number": [*IMAGE, f"{MODEL}ema-decay", "nan"],
    "average every": [*IMAGE, f"{MODEL}ema-every", "0"],
    "no steps": [*IMAGE, "--max-num-iterations", "0"],
    "no steps an iteration": [*IMAGE, "--steps-per-iteration", "0"],
    "recovery": [*IMAGE, "--recovery-rate", "1"],
    "learning rate negative": [*IMAGE, "--optimizers.fields.optimizer.lr", "-1"],
    "learning rate no number": [*NERF, "--optimizers.fields.optimizer.lr", "nan"],
    "learning rate 0": [*SDF, "--optimizers.fields.optimizer.lr", "0"],
    "final rate": [*IMAGE, "--optimizers.fields.scheduler.final-ratio", "0"],
    "betas": [*IMAGE, "--optimizers.fields.optimizer.betas", "1.5", "0.9"],
    "graph on cpu": [*IMAGE, f"{MODEL}cuda-graph", "True"],
    "cuda without": [*IMAGE[:4], "--machine.device-type", "cuda"],
    "processes": [*IMAGE, "--machine.num-devices", "-2"],
    "no machines": [*IMAGE, "--machine.num-devices", "2", "--machine.num-machines", "-1"],
    "all tested": [*IMAGE, f"{DATA}test-fraction", "1"],
    "negative tested": [*IMAGE, f"{DATA}test-fraction", "-0.1"],
    "empty batch": [*IMAGE, f"{DATA}train-num-rays-per-batch", "0"],
    "nothing to load": [*IMAGE, "--load-dir", "nowhere"],
    "folder without checkpoint": [*IMAGE, "--load-dir", "."],
    "checkpoint is text": [*IMAGE, "--load-checkpoint", "text.txt"],
    "densify without number": [*NERF, f"{PLAN}densify-at", "10"],
    "number without densify": [*NERF, f"{PLAN}densify-count", "10"],
    "densify after the end": [*IMAGE, f"{PLAN}densify-at", "101", f"{PLAN}densify-count", "4"],
    "densify at no number": [*IMAGE, f"{PLAN}densify-at", "nan", f"{PLAN}densify-count", "4"],
    "densify share": [*IMAGE, f"{PLAN}densify-at", "10", f"{PLAN}densify-fraction", "2"],
    "prune before decay": [*IMAGE, f"{PLAN}decay-start", "60", f"{PLAN}prune-at", "20"],
    "decay without end": [*NERF, f"{PLAN}decay-start", "-1"],
    "all neurons": [*NERF, f"{PLAN}prune-fraction", "1"],
    "no neurons": [*NERF, f"{PLAN}prune-fraction", "0"],
    "layer not there": [*IMAGE, *REMOVAL, f"{PLAN}prune-layers", "9"],
    "layer twice": [*IMAGE, *REMOVAL, f"{PLAN}prune-layers", "0", "0"],
    "numbers for other layers": [*IMAGE, *REMOVAL, f"{PLAN}prune-counts", "4", "4", "4"],
    "more neurons than there are": [*IMAGE, *REMOVAL, f"{PLAN}prune-counts", "4000", "4"],
    "no parameters": [*IMAGE, *REMOVAL, f"{PLAN}target-parameters", "0"],
    "two targets": [*IMAGE, *REMOVAL, f"{PLAN}target-parameters", "9000", f"{PLAN}target-psnr", "30"],
    "psnr of a surface": [*SDF, *REMOVAL, f"{PLAN}target-psnr", "30"],
    "no rounds": [*IMAGE, *REMOVAL, f"{PLAN}rounds", "0"],
    "epsilon": [*IMAGE, *REMOVAL, f"{PLAN}epsilon", "-1"],
    "decay weight": [*IMAGE, *REMOVAL, f"{PLAN}decay-weight", "nan"],
    "residual of a nerf": [
        *NERF,
        f"{PLAN}densify-at",
        "9",
        f"{PLAN}densify-count",
        "3",
        f"{PLAN}densify-from",
        "residual",
    ],
    "lattice": [*IMAGE, f"{MODEL}variant", "zell", f"{MODEL}lattice-limit", "-1"],
    "scene not there": [*NERF, "--data", "nowhere"],
    "scene is a file": [*NERF, "--data", "text.txt"],
    "scene is empty": [*NERF, "--data", "empty"],
    "grid": [*NERF, f"{MODEL}grid-resolution", "0"],
    "grid every": [*NERF, f"{MODEL}grid-every", "0"],
    "grid decay": [*NERF, f"{MODEL}grid-decay", "2"],
    "grid threshold": [*NERF, f"{MODEL}density-threshold", "nan"],
    "samples": [*NERF, f"{MODEL}max-steps-per-ray", "0"],
    "early stop": [*NERF, f"{MODEL}early-stop-epsilon", "0"],
    "features": [*NERF, f"{MODEL}n-features", "0"],
    "nerfacc on cpu": [*NERF, f"{MODEL}marcher", "nerfacc"],
    "no rays": [*NERF, f"{DATA}train-num-rays-per-batch", "0"],
    "shape not there": [*SDF, "--data", "none.ply"],
    "shape is text": [*SDF, "--data", "text.txt"],
    "shape is empty": [*SDF, "--data", "empty.ply"],
    "no points": [*SDF, f"{DATA}on-surface", "0"],
    "pool": [*SDF, f"{DATA}pool", "10"],
    "curvature": [*SDF, f"{DATA}curvature-share", "2"],
    "grid of a mesh": [*SDF, f"{MODEL}eval-resolution", "1"],
    "weight": [*SDF, f"{MODEL}surface-weight", "nan"],
    "weight negative": [*SDF, f"{MODEL}eikonal-weight", "-1"],
    "speed": [*FLOW, f"{MODEL}alpha", "0"],
    "duration": [*FLOW, f"{DATA}duration", "nan"],
    "moment": [*FLOW, f"{MODEL}time", "-1"],
    "surface not there": [*FLOW, f"{MODEL}load-sdf", "none.ckpt"],
    "surface is text": [*FLOW, f"{MODEL}load-sdf", "text.txt"],
    "points of space-time": [*FLOW, f"{DATA}space-time", "0"],
    "weight of the flow": [*FLOW, f"{MODEL}flow-weight", "inf"],
    "evaluation of nothing": ["ns-eval", "--load-config", "text.txt"],
    "report of nothing": ["aire-report", "nowhere"],
    "report of no run": ["aire-report", "."],
    "report of three": ["aire-report", ".", ".", "."],
    "inspection of nothing": ["aire-inspect", "nowhere"],
    "inspection of text": ["aire-inspect", "text.txt"],
    "inspection of no run": ["aire-inspect", "."],
    "comparison of nothing": ["aire-compare", "--data", "nowhere"],
    "comparison of none": ["aire-compare", "--data", "empty", "--methods", "no-such-method"],
    "comparison in no time": ["aire-compare", "--data", "empty", "--minutes", "0"],
    "reproduction of nothing": ["aire-reproduce", "images-table99", "--budget", "smoke"],
    "reproduction from nothing": ["aire-reproduce", "images-table3", "--data", "nowhere"],
    "reproduction from no picture": ["aire-reproduce", "images-table3", "--data", "empty"],
    "reproduction by nobody": ["aire-reproduce", "images-table3", "--budget", "smoke", "--jobs", "0"],
    "reproduction of a part": ["aire-reproduce", "images-table3", "--budget", "smoke", "--part", "3/2"],
    "reproduction otherwise": ["aire-reproduce", "images-table3", "--budget", "smoke", "--set", "decay=never"],
    "export of nothing": ["aire-export", "image", "--load-config", "none.yml", "--output-path", "a.png"],
    "export of text": ["aire-export", "mesh", "--load-config", "text.txt", "--output-path", "a.ply"],
    "both are missing": ["aire-export", "compare", "--load-config", "text.txt", "--other-config", "none.yml"],
    "export of a folder": ["aire-export", "image", "--load-config", "empty", "--output-path", "a.png"],
    "reproduction into a file": ["aire-reproduce", "images-table3", "--budget", "smoke", "--out", "text.txt"],
    "bench into nowhere": ["aire-bench", "--widths", "8", "--batches", "64", "--out", "/proc/none"],
    "bench of nothing": ["aire-bench", "--widths", "0"],
    "bench of no batch": ["aire-bench", "--batches", "-1"],
}
# nerfstudio's own reading of a config.yml, before anything of ours is asked.
NOT_OURS = {"evaluation of nothing"}


@pytest.mark.parametrize("name", BAD)
def test_one_line_no_file(name, tmp_path):
    (tmp_path / "text.txt").write_text("nothing of interest\n")
    for file in ("empty.png", "empty.ply"):
        (tmp_path / file).touch()
    (tmp_path / "empty").mkdir()
    if name == "cuda without" and torch.cuda.is_available():
        pytest.skip("there is CUDA")
    before = sorted(tmp_path.rglob("*"))
    done = run_command(*BAD[name], cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert sorted(tmp_path.rglob("*")) == before
    if name in NOT_OURS:
        return
    assert "Traceback" not in done.stderr, done.stderr[-1500:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:") or ": error: " in line]
    assert len(lines) == 1, done.stderr[-1500:]
    assert len(lines[0]) > 30
