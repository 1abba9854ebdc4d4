"""Numbers that are none: the step is not made; the last good state comes back once, the second time it ends there."""

import math
from dataclasses import replace

import pytest
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from tiny import TASKS, checkpoints, differences, load, tiny_config, train

from aire_nerfstudio.adaptation.control import Request
from aire_nerfstudio.fields.sine_mlp import SineMLP
from aire_nerfstudio.models.adaptive import AdaptiveModel
from aire_nerfstudio.models.guard import FaultGuard
from aire_nerfstudio.models.removal_check import RemovalCheck
from aire_nerfstudio.notices import warn

# The guard keeps a state at steps 0, 50, 100, ...; these runs are long enough for two.
LONG = 90


def _spoil(monkeypatch, what, *steps):
    """Have loss, or a gradient, of each of ``steps`` spoiled the first time it is made."""
    left = list(steps)
    adaptation_loss = AdaptiveModel.adaptation_loss

    def spoiled(self, error=None):
        loss = adaptation_loss(self, error)
        if self.training and self.adaptation.position[0] in left:
            left.remove(self.adaptation.position[0])
            parameter = next(self.field.parameters())
            if what == "loss":
                return loss + math.nan
            if what == "infinite":
                return loss + math.inf
            return loss + (parameter * 0).sqrt().sum()  # 0, with a gradient that is not a number
        return loss

    monkeypatch.setattr(AdaptiveModel, "adaptation_loss", spoiled)
    return left


def _rate(state):
    return state["optimizers"]["fields"]["param_groups"][0]["lr"]


@pytest.mark.parametrize("what", ["loss", "infinite", "gradient"])
def test_one_fault_goes_back_once_with_a_lower_rate(what, monkeypatch, tmp_path):
    sound = tiny_config("image", tmp_path / "sound", max_num_iterations=LONG, steps_per_save=50)
    train(sound)
    left = _spoil(monkeypatch, what, 70)
    config = tiny_config("image", tmp_path / what, max_num_iterations=LONG, steps_per_save=50)
    trainer = train(config)
    assert left == []
    events = [(e["event"], e["step"]) for e in trainer.pipeline.model.adaptation.history]
    assert events == [("densify", 11), ("decay", 17), ("prune", 34), ("return", 50)]
    state = load(checkpoints(config)[-1])
    assert state["step"] == LONG - 1
    assert all(torch.isfinite(v).all() for v in state["pipeline"].values() if isinstance(v, torch.Tensor))
    assert _rate(state) == pytest.approx(0.25 * _rate(load(checkpoints(sound)[-1])), rel=1e-9)
    # What was lost is what was trained since: before, the two runs are one.
    assert differences(load(checkpoints(sound)[0])["pipeline"], load(checkpoints(config)[0])["pipeline"]) == []


@pytest.mark.parametrize("task", TASKS)
def test_what_follows_the_return_is_the_run_resumed_there_with_that_rate(task, monkeypatch, tmp_path):
    """Weights, moments, average, random numbers: as if step 49's checkpoint had been taken up with a lower rate."""
    first = tiny_config(task, tmp_path / "first", max_num_iterations=LONG, steps_per_save=49)
    train(first)
    resumed = tiny_config(task, tmp_path / "resumed", max_num_iterations=LONG)
    resumed.load_dir, resumed.load_step = first.get_checkpoint_dir(), 49
    _lower_the_rate(checkpoints(first)[0], 0.25)
    train(resumed)
    _spoil(monkeypatch, "loss", 63)
    config = tiny_config(task, tmp_path / "fault", max_num_iterations=LONG)
    train(config)
    got, expected = load(checkpoints(config)[-1]), load(checkpoints(resumed)[-1])
    ignored = ("history", "record", "now")
    for state in (got, expected):
        for name in ignored:
            state["pipeline"]["_model._extra_state"].pop(name)
    assert differences(got, expected) == []


def _lower_the_rate(path, factor):
    state = load(path)
    for optimizer in state["optimizers"].values():
        for group in optimizer["param_groups"]:
            group["lr"] *= factor
            group["initial_lr"] *= factor
    for scheduler in state["schedulers"].values():
        scheduler["base_lrs"] = [rate * factor for rate in scheduler["base_lrs"]]
    torch.save(state, path)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_second_fault_ends_the_run_with_the_last_good_state(at_once, monkeypatch, tmp_path):
    if at_once:
        _spoil(monkeypatch, "loss", 70)
        config = tiny_config("sdf", tmp_path, max_num_iterations=LONG, steps_per_save=1000, recovery_rate=0)
    else:
        _spoil(monkeypatch, "gradient", 60, 75)
        config = tiny_config("sdf", tmp_path, max_num_iterations=LONG, steps_per_save=1000)
    with pytest.raises(SystemExit, match=r"loss or gradients are not finite at step \d\d") as end:
        train(config)
    said = str(end.value)
    assert "; start again with a lower learning rate (now " in said
    assert "\n" not in said
    (path,) = checkpoints(config)
    assert str(path) in said
    assert ("again" in said.split(".")[0]) is not at_once
    state = load(path)
    assert state["step"] == 49
    assert all(torch.isfinite(v).all() for v in state["pipeline"].values() if isinstance(v, torch.Tensor))
    # It is a checkpoint like any other.
    monkeypatch.undo()
    again = tiny_config("sdf", tmp_path / "again", max_num_iterations=LONG)
    again.load_dir = config.get_checkpoint_dir()
    train(again)
    assert load(checkpoints(again)[-1])["step"] == LONG - 1


def test_a_large_network_that_diverges(tmp_path):
    """Figure 4's network at a tenth of its width (four layers, w0 60), at a rate at which it cannot be trained."""
    sizes = {"widths": (24, 24, 24, 24), "first_omega": 60.0, "hidden_omega": 60.0, "variant": "large"}
    config = tiny_config("sdf", tmp_path, model=sizes, max_num_iterations=600, steps_per_save=10_000)
    config.optimizers["fields"]["optimizer"].lr = 0.1
    with pytest.raises(SystemExit, match="loss or gradients are not finite at step"):
        train(config)
    for path in checkpoints(config):
        state = load(path)["pipeline"]
        assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor))
        assert [e["event"] for e in state["_model._extra_state"]["history"]] in ([], ["return"])


def test_a_fault_before_anything_was_learned_saves_nothing(monkeypatch, tmp_path):
    _spoil(monkeypatch, "loss", 0)
    config = tiny_config("image", tmp_path, recovery_rate=0)
    with pytest.raises(SystemExit, match="nothing is saved; start again with a lower learning rate"):
        train(config)
    assert checkpoints(config) == []


def test_a_fault_among_several_steps_an_iteration(monkeypatch, tmp_path):
    _spoil(monkeypatch, "loss", 62)
    config = tiny_config("image", tmp_path, max_num_iterations=LONG // 5, steps_per_save=1000, steps_per_iteration=5)
    trainer = train(config)
    assert trainer.pipeline.model.adaptation.history[-1]["event"] == "return"
    assert trainer.pipeline.model.adaptation.history[-1]["step"] == 50
    state = load(checkpoints(config)[-1])
    assert state["step"] == LONG // 5 - 1
    assert state["pipeline"]["_model._extra_state"]["step"] == LONG - 1


def test_what_was_done_by_hand_is_not_undone(monkeypatch, tmp_path):
    """A state is kept right after it, though it is not yet time for the next."""
    after_step = AdaptiveModel.after_step

    def pressing(self, step):
        if step == 57 and not self.adaptation.log.has_returned:
            self.by_hand.ask_for(Request("densify", 3))
        after_step(self, step)

    monkeypatch.setattr(AdaptiveModel, "after_step", pressing)
    _spoil(monkeypatch, "loss", 70)
    trainer = train(tiny_config("image", tmp_path, max_num_iterations=LONG, steps_per_save=1000))
    events = [(e["event"], e["step"], e["by_hand"]) for e in trainer.pipeline.model.adaptation.history]
    # Asked for after step 57 was looked at: it waits for the look at 58.
    assert events[-2:] == [("densify", 59, True), ("return", 59, False)]


def test_a_history_that_knows_nothing_of_hands_is_taken_up(tmp_path):
    config = tiny_config("image", tmp_path / "first")
    train(config)
    state = load(checkpoints(config)[-1])
    for event in state["pipeline"]["_model._extra_state"]["history"]:
        del event["by_hand"]
    torch.save(state, checkpoints(config)[-1])
    again = tiny_config("image", tmp_path / "again", max_num_iterations=60)
    again.load_dir = config.get_checkpoint_dir()
    assert train(again).pipeline.model.adaptation.log.changes_by_hand == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_on_a_device_too_a_step_before_a_change_is_looked_at(steps, monkeypatch, tmp_path):
    """There most steps are not; the moments are those before events, saves and the end."""
    looked, is_sound = [], FaultGuard.is_sound

    def watched(self, loss, parameters, must_look=False):
        looked.append(must_look)
        return is_sound(self, loss, parameters, must_look)

    monkeypatch.setattr(FaultGuard, "is_sound", watched)
    train(
        tiny_config("image", tmp_path, steps_per_save=1000, steps_per_iteration=steps, max_num_iterations=48 // steps)
    )
    assert [step for step, looks in enumerate(looked) if looks] == [10, 16, 33, 47]


def test_a_guarded_run_without_a_fault_is_the_run(monkeypatch, tmp_path):
    """Copies and looks draw no random numbers and change nothing."""
    config = tiny_config("nerf", tmp_path / "a")
    train(config)
    monkeypatch.setattr(FaultGuard, "keep", lambda *_: None)
    monkeypatch.setattr(FaultGuard, "is_sound", lambda *_: True)
    other = tiny_config("nerf", tmp_path / "b")
    train(other)
    assert differences(load(checkpoints(config)[-1]), load(checkpoints(other)[-1])) == []


def test_bad_rates_are_refused(tmp_path):
    for rate in (1, -0.1, math.nan):
        with pytest.raises(SystemExit, match=r"--recovery-rate is .*; it must lie in \[0, 1\)"):
            train(tiny_config("image", tmp_path / "bad", recovery_rate=rate))
    assert not (tmp_path / "bad").exists()


def test_a_removal_is_held_to_theorem_two():
    network = SineMLP(3, (20, 16), 2, "siren", 10.0, 5.0)
    remove = {0: torch.arange(5), 1: torch.tensor([3, 9])}
    check = RemovalCheck(network, remove)
    with torch.no_grad():
        for layer, neurons in remove.items():
            network.layers[layer + 1].weight[:, neurons] = 0
    effect = check.effect(network)
    assert 0 < effect <= check.bound
    assert check.is_within(effect)
    with torch.no_grad():
        network.layers[-1].bias += 2 * check.bound + 1
    assert not check.is_within(check.effect(network))
    with torch.no_grad():
        network.layers[-1].bias += math.nan
    assert not check.is_within(check.effect(network))


def test_training_reports_what_a_removal_changed(tmp_path, capsys, monkeypatch):
    trainer = train(tiny_config("image", tmp_path / "a", quiet=False))
    event = trainer.pipeline.model.adaptation.history[-1]
    assert event["event"] == "prune"
    assert 0 < event["effect"] <= event["bound"]
    assert "it changed them by at most" in capsys.readouterr().out
    monkeypatch.setattr("aire_nerfstudio.models.removal_check.pruning_bound", lambda *_: 0.0)
    train(tiny_config("image", tmp_path / "b", quiet=False))
    said = " ".join(capsys.readouterr().out.split())
    assert "more than theorem 2" in said


def test_a_removal_beside_a_densification_is_not_judged(tmp_path, capsys):
    at_once = {"unit": "steps", "densify_at": 34, "densify_count": 4, "decay_start": 17, "prune_at": 34}
    config = tiny_config("image", tmp_path, quiet=False)
    config.pipeline.model.adaptation = replace(config.pipeline.model.adaptation, **at_once, decay="scheduled")
    train(config)
    said = capsys.readouterr().out
    assert "densify" in said
    assert "theorem 2" not in said


def test_what_ctrl_c_ends_goes_on_from_the_last_kept_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aire_nerfstudio.models.guard.LEAST_STEPS_BETWEEN_STATES", 10)
    whole = train(tiny_config("image", tmp_path / "whole"))
    before_step = AdaptiveModel.before_step

    def interrupted(self, step):
        if step == 37:
            raise KeyboardInterrupt
        before_step(self, step)

    config = tiny_config("image", tmp_path / "cut", steps_per_save=1000)
    with monkeypatch.context() as patch:
        patch.setattr(AdaptiveModel, "before_step", interrupted)
        with pytest.raises(SystemExit) as ended:
            train(config)
    assert ended.value.code == 130
    assert "in iteration 37; the last checkpoint is of 29" in capsys.readouterr().err
    run = config.get_checkpoint_dir().parent
    again = train(tiny_config("image", tmp_path / "again", load_dir=run))  # a run's folder will do
    assert not differences(whole.pipeline.state_dict(), again.pipeline.state_dict())


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_warning_is_told_where_all_else_is_quiet(is_quiet, capsys, monkeypatch):
    monkeypatch.setattr(CONSOLE, "quiet", is_quiet)
    CONSOLE.log("what is going on")
    warn("[7, 8] neurons\nare odd")
    told = capsys.readouterr()
    monkeypatch.setattr("aire_nerfstudio.distributed.rank", lambda: 1)
    warn("of another process")
    assert not any(capsys.readouterr())
    assert ("what is going on" in told.out) is not is_quiet
    assert "warning: [7, 8] neurons?are odd" in (told.err if is_quiet else told.out)
