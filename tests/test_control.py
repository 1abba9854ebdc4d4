"""By hand: a button pressed at a step does what the schedule does at that step, and a refusal leaves no trace."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from tiny import differences, tiny_config, train

from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.adaptation.control import Refused, Request, StageSpan, spread
from aire_nerfstudio.models.image import ImageModelConfig
from aire_nerfstudio.record import RunRecord

TOTAL = 60
SCHEDULE = AireConfig(
    unit="steps", densify_at=10, densify_count=5, decay_start=25, prune_at=45, prune_layers=(0, 1), prune_counts=(6, 4)
)
NONE = AireConfig(densify_at=None, decay_start=None, prune_at=None, prune_layers=(0, 1), prune_fraction=0.5)


class Run:
    """An image model driven step by step, as nerfstudio's trainer does."""

    def __init__(self, adaptation=SCHEDULE, variant="aire", total=TOTAL, checkpoint=None, widths=(13, 11)):
        torch.manual_seed(5)
        config = ImageModelConfig(widths=widths, variant=variant, adaptation=adaptation, ema_decay=0.9, ema_every=3)
        box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
        metadata = {"height": 9, "width": 7, "channels": 3}
        self.model = config.setup(scene_box=box, num_train_data=1, metadata=metadata, device="cpu").train()
        self.optimizer = torch.optim.Adam(self.model.get_param_groups()["fields"], lr=2e-3)
        self.next = 0
        if checkpoint is not None:
            self.model.load_state_dict(copy.deepcopy(checkpoint["model"]))
            self.optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
            self.next = checkpoint["next"]
        trainer = SimpleNamespace(total_steps=total, config=SimpleNamespace(steps_per_iteration=1))
        optimizers = SimpleNamespace(optimizers={"fields": self.optimizer})
        self.model.get_training_callbacks(TrainingCallbackAttributes(optimizers, None, None, trainer))
        self.answers = []

    def checkpoint(self):
        saved = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "next": self.next}
        return copy.deepcopy(saved)

    def to(self, end):
        model = self.model
        for step in range(self.next, end):
            model.before_step(step)
            points = 2 * torch.rand(50, 2) - 1
            batch = {"image": 0.5 + 0.4 * torch.sin(5 * points[:, :1] * torch.ones(3))}
            outputs = model(points)
            losses, metrics = model.get_loss_dict(outputs, batch), model.get_metrics_dict(outputs, batch)
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            self.optimizer.step()
            model.adaptation.log.note(step, losses, metrics)
            model.after_step(step)
        self.next = end
        return self

    def press(self, action, count=None, steps=None):
        self.model.by_hand.ask_for(Request(action, count, steps), self.answers.append)
        return self

    def weights(self):
        return {**dict(self.model.field.state_dict()), **{f"a.{k}": v for k, v in self.average().items()}}

    def average(self):
        return self.model.field_average.state_dict()

    @property
    def widths(self):
        return self.model.field.widths

    def events(self):
        return [(event["event"], event["step"]) for event in self.model.adaptation.history]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("missing", "action", "at"),
    [({"densify_at": 20}, "densify", 10), ({"decay_start": 30}, "decay", 25), ({"prune_at": 50}, "skip", 45)],
)
def test_a_button_is_the_schedule_moved(missing, action, at):
    """Everything of the run, weights, moments, average, random numbers, is that of a run scheduled so."""
    planned = Run().to(TOTAL)
    # The answer to a press during step ``at - 1`` precedes step ``at``; the end of the decay is part of its ramp.
    config = replace(SCHEDULE, **missing)
    if action == "decay":
        pressed = Run(config).to(at - 1).press(action, steps=20).to(TOTAL)
    elif action == "skip":
        planned = Run(config).to(at - 1).press("prune").to(TOTAL)
        pressed = Run(config).to(at - 1).press(action).to(TOTAL)
    else:
        pressed = Run(config).to(at - 1).press(action).to(TOTAL)
    assert pressed.events() == planned.events() == [("densify", 10), ("decay", 25), ("prune", 45)]
    assert same(pressed.weights(), planned.weights())
    assert sum(event["by_hand"] for event in pressed.model.adaptation.history) == 1


def test_a_prune_by_hand_removes_the_chosen_and_keeps_the_rest_of_the_run():
    run = Run().to(30).press("prune").to(31)
    assert run.widths == [12, 7]
    assert [p.shape for p in run.model.field_average.parameters()] == [p.shape for p in run.model.field.parameters()]
    assert run.model.adaptation.record.births[0].tolist().count(10) == sum(run.model.adaptation.record.births[0] > 0)
    assert run.to(TOTAL).events() == [("densify", 10), ("decay", 25), ("prune", 31)]
    assert run.model.adaptation.sizes[1] == sum(p.numel() for p in run.model.field.parameters())


def test_a_run_without_a_schedule_is_adapted_by_hand_alone_and_again():
    run = Run(NONE).to(3).press("densify", count=4).to(6).press("decay", count=6, steps=5).to(20)
    assert run.events() == [("densify", 4), ("decay", 7), ("prune", 12)]
    assert run.widths == [13 + 4 - 4, 11 - 2]
    run.press("decay", count=3, steps=4).to(30).press("densify", count=2).to(TOTAL)
    assert run.widths == [13 - 2 + 2, 9 - 1]
    assert len(run.answers) == 4
    assert not any("refused" in answer for answer in run.answers)


@pytest.mark.parametrize("frozen_for", [1, 7])
@pytest.mark.parametrize("at", [4, 30])  # before all events; within the decay, whose weight then stands still
def test_a_frozen_schedule_comes_later_by_as_much(at, frozen_for):
    run = Run().to(at)
    run.model.by_hand.ask_to_freeze(True)
    run.to(at + 1)
    clock = run.model.adaptation.position[1]
    run.to(at + frozen_for)
    run.model.by_hand.ask_to_freeze(False)
    run.to(at + frozen_for + 1)
    assert run.model.adaptation.position[1] == clock  # the step that answered the second request was frozen still
    delay = frozen_for
    expected = [("densify", 10), ("decay", 25), ("prune", 45)]
    scheduled = [(e, s + delay if s > at else s) for e, s in expected]
    events = [event for event in run.to(TOTAL).events() if "freeze" not in event[0]]
    assert events == scheduled


def test_what_is_asked_by_hand_is_done_while_the_schedule_is_frozen():
    run = Run().to(5)
    run.model.by_hand.ask_to_freeze(True)
    run.to(7).press("densify", count=2).to(9)
    assert run.widths[0] == 15
    assert run.to(TOTAL).widths == [15, 11]


@pytest.mark.parametrize(
    ("variant", "to", "action", "options", "words"),
    [
        ("aire", 5, "prune", {}, "no neurons are chosen"),
        ("aire", 28, "densify", {}, "neurons are decaying"),
        ("aire", 28, "decay", {}, "decaying already"),
        ("aire", 50, "skip", {}, "nothing is left"),
        ("aire", 5, "densify", {"count": 14}, "at most 13"),
        ("aire", 12, "decay", {"count": 40}, "can go"),
        ("aire", 12, "decay", {"steps": 50}, "give fewer steps"),
        ("aire", 5, "decay", {"steps": 20}, "densify first"),
        ("large", 5, "densify", {"count": 2}, "never changes"),
        ("rigl", 5, "prune", {}, "rule of its own"),
        ("depgraph", 5, "densify", {"count": 2}, "adds no neurons"),
        ("taylor", 5, "decay", {"count": 2}, "fresh scores"),
        ("layers", 5, "decay", {}, "sine layers are 0 to 1"),
        ("psnr", 30, "decay", {}, "leaves nothing to remove"),
        ("psnr", 30, "skip", {}, "leaves nothing to remove"),
    ],
)
def test_a_refusal_says_why_and_leaves_no_trace(variant, to, action, options, words):
    special = {
        "aire": SCHEDULE,
        "taylor": replace(NONE, criterion="taylor"),
        "layers": replace(NONE, prune_layers=(0, 5)),
        "psnr": replace(SCHEDULE, target_psnr=60.0),
    }
    adaptation = special.get(variant, replace(SCHEDULE, densify_at=None, densify_count=0))
    variant = "aire" if variant in special else variant
    refused = Run(adaptation, variant).to(to).press(action, **options).to(TOTAL)
    assert len(refused.answers) == 1
    assert refused.answers[0].startswith("refused: ")
    assert words in refused.answers[0]
    untouched = Run(adaptation, variant).to(TOTAL)
    states = [run.model.adaptation.state.to_dict() for run in (refused, untouched)]
    assert str(states[0]) == str(states[1])
    assert same(refused.weights(), untouched.weights())
    assert refused.events() == untouched.events()


def test_neurons_chosen_while_the_schedule_stands_still_do_not_grow():
    """Ahead of the clock the decay's weight is 0, not negative."""
    run = Run(NONE).to(5)
    run.model.by_hand.ask_to_freeze(True)
    run.to(8).press("decay", count=6, steps=5).to(9)
    assert run.answers[0].startswith("decay [")
    chosen = run.model.adaptation.status().targets
    run.to(40)
    assert run.model.adaptation_loss().item() >= 0
    assert run.model.adaptation.status().targets == chosen
    run.model.by_hand.ask_to_freeze(False)
    assert run.to(TOTAL).events()[-1][0] == "prune"


def test_the_whole_of_an_extended_run_can_be_steered():
    saved = Run().to(TOTAL).checkpoint()
    run = Run(total=2 * TOTAL, checkpoint=saved).to(TOTAL + 5).press("decay", count=4, steps=20).to(2 * TOTAL)
    assert run.answers[0].startswith("decay")
    assert run.events()[-1] == ("prune", TOTAL + 6 + 20)


def test_a_densification_may_come_between_rounds():
    config = replace(SCHEDULE, densify_at=None, densify_count=0, target_parameters=150, rounds=2)
    run = Run(config).to(31)
    assert not run.model.adaptation.status().targets
    run.press("densify", count=3).to(32)
    assert run.answers == ["densify [3, 0]"]
    assert run.to(TOTAL).model.adaptation.sizes[1] <= 150


def test_of_two_moments_at_once_the_first_done_is_skipped_to():
    run = Run(replace(SCHEDULE, densify_at=25)).to(4).press("skip").to(6).press("skip").to(8)
    assert [event for event, _ in run.events()] == ["densify", "decay"]


def test_what_comes_too_late_is_refused_at_the_end():
    run = Run().to(TOTAL)
    run.press("prune")
    run.model._after_run(TOTAL)
    assert run.answers == ["refused: the training is over"]


def test_requests_are_answered_at_an_iterations_end():
    run = Run()
    run.model._steps_per_iteration = 4
    run.to(5).press("densify", count=2).to(7)
    assert run.answers == []
    assert run.to(8).answers == ["densify [2, 0]"]
    assert run.events() == [("densify", 8)]


@pytest.mark.parametrize("config", [SCHEDULE, replace(SCHEDULE, target_parameters=150, rounds=4)])
def test_a_run_that_was_steered_resumes_as_if_uninterrupted(config):
    def steer(run):
        run.to(12).press("densify", count=3).to(20).press("decay", count=5, steps=9).to(22)
        run.model.by_hand.ask_to_freeze(True)
        return run.to(25)

    whole = steer(Run(config))
    assert len(whole.answers) == 2
    assert not any("refused" in answer for answer in whole.answers)
    saved = whole.checkpoint()
    whole.model.by_hand.ask_to_freeze(False)
    whole.to(TOTAL)
    again = Run(config, checkpoint=saved)
    again.model.by_hand.ask_to_freeze(False)
    again.to(TOTAL)
    assert whole.events() == again.events()
    assert same(whole.weights(), again.weights())
    assert torch.equal(
        whole.model.adaptation.record.to_dict()["columns"]["loss"],
        again.model.adaptation.record.to_dict()["columns"]["loss"],
    )
    assert whole.model.adaptation.record.steps == again.model.adaptation.record.steps


def test_rounds_take_one_by_hand_in_between():
    run = Run(replace(SCHEDULE, target_parameters=150, rounds=3)).to(15).press("decay", count=4, steps=5).to(21)
    assert run.events() == [("densify", 10), ("decay", 16)]
    assert run.to(22).events()[2:] == [("prune", 21)]
    run.to(TOTAL)
    assert run.model.adaptation.sizes[1] <= 150
    assert [event for event, _ in run.events()].count("prune") >= 3


ROUNDS = replace(SCHEDULE, target_parameters=150, rounds=3)
PRUNING = replace(SCHEDULE, densify_at=None, densify_count=0)


@pytest.mark.parametrize(
    ("config", "variant", "at", "request_", "said"),
    [
        (PRUNING, "depgraph", 5, ("densify", 3), "this variant adds no neurons; train the variant aire"),
        (NONE, "aire", 5, ("densify",), "the configuration adds no neurons and no count was given; give one"),
        (NONE, "aire", 5, ("densify", 14), "count is 14; the input layer has 13 neurons, so at most 13 can be added"),
        (SCHEDULE, "aire", 30, ("densify", 1), "neurons are decaying; remove them first (prune), then densify"),
        (SCHEDULE, "aire", 30, ("decay", 1), "10 neurons are decaying already; remove them first (prune)"),
        (SCHEDULE, "aire", 5, ("prune",), "no neurons are chosen; start their decay first"),
        (SCHEDULE, "aire", 50, ("prune",), "no neurons are chosen; start their decay first"),
        (SCHEDULE, "aire", 50, ("skip",), "nothing is left in the schedule; densify, decay and prune work without it"),
        (
            replace(NONE, prune_layers=(0, 7)),
            "aire",
            5,
            ("decay",),
            "prune_layers is (0, 7); the network's sine layers",
        ),
        (replace(NONE, prune_counts=(3,)), "aire", 5, ("decay",), "prune_counts (3,) must have one number for each of"),
        (replace(NONE, prune_counts=(-1, 2)), "aire", 5, ("decay",), "-1"),
        (NONE, "aire", 5, ("decay", 24), "24 neurons are more than the layers can lose; at most 22 can go"),
        (NONE, "aire", 54, ("decay", 2), "the decay would end at step 60 and the run at 60; give fewer steps"),
        (SCHEDULE, "aire", 4, ("decay", 2, 9), "neurons are added at step 10, within the decay; densify first"),
        (ROUNDS, "aire", 5, ("prune",), "no neurons are chosen; start their decay first"),
        (ROUNDS, "aire", 58, ("decay", 2), "the decay would end at step 61 and the run at 60; give fewer steps"),
        (ROUNDS, "aire", 55, ("decay",), "the target leaves nothing to remove at present; give a count"),
        (SCHEDULE, "large", 5, ("densify",), "the network of this variant never changes; train the variant aire"),
        (SCHEDULE, "rigl", 5, ("decay",), "rigl exchanges connections by a rule of its own; train the variant aire"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_trace(config, variant, at, request_, said):
    run = Run(config, variant).to(at)
    before, state = run.checkpoint(), copy.deepcopy(run.model.adaptation.state.to_dict())
    draws = torch.get_rng_state()
    run.press(*request_)
    run.model._answer(at)
    (answer,) = run.answers
    assert answer.startswith("refused: ")
    assert said in answer
    assert "\n" not in answer
    weights = [{k: v for k, v in saved["model"].items() if k != "_extra_state"} for saved in (before, run.checkpoint())]
    assert same(*weights)
    assert differences(state, run.model.adaptation.state.to_dict()) == []
    assert differences(dict(before["optimizer"]), dict(run.checkpoint()["optimizer"])) == []
    assert torch.equal(draws, torch.get_rng_state())


def test_a_round_by_hand_takes_what_the_target_says_and_may_be_cut_short():
    run = Run(ROUNDS).to(15).press("decay").to(16)
    assert run.events()[-1] == ("decay", 16)
    chosen = run.model.adaptation.history[-1]["counts"]
    assert sum(chosen) > 0
    run.press("prune").to(17)
    assert run.events()[-1] == ("prune", 17)
    assert run.model.adaptation.history[-1]["counts"] == chosen
    run.to(TOTAL)
    assert run.model.adaptation.sizes[1] <= 150


def test_a_round_by_hand_lasts_as_long_as_the_others():
    # The window of 20 steps has three rounds of 6, half of each decay.
    run = Run(ROUNDS).to(15).press("decay").to(TOTAL)
    assert run.events()[:3] == [("densify", 10), ("decay", 16), ("prune", 19)]
    late = Run(ROUNDS).to(55).press("skip")
    late.model._answer(55)
    assert late.answers == ["refused: nothing is left in the schedule; densify, decay and prune work without it"]


@pytest.mark.parametrize(
    ("config", "at", "removal"),
    [
        (SCHEDULE, 14, 45),  # as planned
        (NONE, 14, 15 + 6),  # a tenth of the run
        (replace(NONE, prune_layers=(1,)), 14, 21),
        (replace(SCHEDULE, criterion="taylor", densify_at=None, densify_count=0), 20, 45),
    ],
)
def test_a_decay_by_hand_ends_where_the_schedule_or_a_tenth_of_the_run_says(config, at, removal):
    run = Run(config).to(at).press("decay").to(TOTAL)
    assert [answer[:6] for answer in run.answers] == ["decay "]
    assert [event for event in run.events() if event[0] != "densify"] == [("decay", at + 1), ("prune", removal)]
    chosen = next(event["counts"] for event in run.model.adaptation.history if event["event"] == "decay")
    assert [bool(count) for count in chosen] == [layer in config.prune_layers for layer in range(2)]


def test_every_step_of_a_run_belongs_to_the_stage_that_holds_it():
    spans = Run().model.adaptation.status()
    names = [(spans.span_at(clock) or StageSpan("none", 0, 0)).name for clock in range(-1, TOTAL + 1)]
    assert [names.index(name) - 1 for name in dict.fromkeys(names[1:-1])] == [0, 10, 25, 45]
    assert (names[0], names[-1]) == ("none", "none")


def test_requests_count_from_one():
    with pytest.raises(Refused, match="count is 0"):
        Request("densify", 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 60))
def test_neurons_spread_over_layers_as_their_widths(widths, count):
    if count > sum(widths) - len(widths):
        with pytest.raises(Refused):
            spread(count, widths)
        return
    shares = spread(count, widths)
    assert sum(shares) == count
    assert all(0 <= share < width for share, width in zip(shares, widths, strict=True))


def test_the_record_stays_small_and_survives_the_checkpoint():
    record = RunRecord(total_steps=20)
    for step in range(9001):
        if record.is_due(step):
            record.add(step, {"loss": 1 / (1 + step), **({"late": 1.0} if step > 100 else {})}, [3, 4], 50)
    assert len(record.steps) <= 2001
    assert record.steps[0] == 0
    assert all(step % record.stride == 0 for step in record.steps)
    assert [round(1 / value) - 1 for value in record.columns["loss"]] == record.steps
    again = RunRecord.from_dict(record.to_dict())
    assert again.steps == record.steps
    assert again.widths == record.widths
    assert again.columns["loss"] == record.columns["loss"]


def test_births_and_contributions_are_those_of_the_network():
    run = Run().to(TOTAL)
    record, model = run.model.adaptation.record, run.model
    assert [shot.event for shot in record.snapshots] == ["start", "densify", "decay", "prune"]
    chosen = record.snapshots[2]
    assert [int(layer.is_target.sum()) for layer in chosen.layers] == [6, 4]
    now = model.adaptation.snapshot()
    columns = [layer.weight.abs().sum(0) for layer in model.field.affines()[1:]]
    assert all(torch.allclose(a.contributions, b) for a, b in zip(now.layers, columns, strict=True))
    assert now.frequencies.shape == (12, 2)
    before, kept = chosen.layers[0], ~chosen.layers[0].is_target
    assert torch.equal(before.births[kept], now.layers[0].births)
    assert set(now.layers[0].births.tolist()) <= {0, 10}


def test_a_budget_above_the_network_is_said_to_remove_nothing(capsys):
    at = {"unit": "steps", "decay_start": 5, "prune_at": 10}
    Run(AireConfig(**at, target_parameters=10_000))
    said = " ".join(capsys.readouterr().out.split())
    size = (2 + 1) * 13 + (13 + 1) * 11 + (11 + 1) * 3
    assert f"the budget is 10,000 parameters and the network never has more than {size}:" in said
    Run(AireConfig(**at, target_parameters=size - 1))
    assert "nothing will be removed" not in capsys.readouterr().out


def test_of_several_changes_before_one_step_each_has_its_own_size():
    at_once = AireConfig(
        unit="steps",
        densify_at=10,
        densify_count=4,
        decay_start=10,
        prune_at=10,
        prune_counts=(5, 3),
        prune_layers=(0, 1),
    )
    run = Run(at_once).to(11)

    def size(a, b):
        return (2 + 1) * a + (a + 1) * b + (b + 1) * 3

    assert [(e["event"], e["after"], e["parameters"]) for e in run.model.adaptation.history] == [
        ("densify", [17, 11], size(17, 11)), ("decay", [17, 11], size(17, 11)), ("prune", [12, 8], size(12, 8)),
    ]  # fmt: skip
    assert run.model.adaptation.sizes[1] == size(12, 8)


@pytest.mark.parametrize(
    ("variant", "given", "said"),
    [
        ("aire", {"prune_at": 50}, None),
        ("aire_early", {}, None),
        ("aire_early", {"unit": "steps", "prune_at": 50}, "sets prune_at 30 itself"),
        ("aire_rounds", {"densify_fraction": 0.5}, "sets densify_fraction 1 itself"),
    ],
)
def test_a_variant_says_what_it_sets_itself(variant, given, said, tmp_path, capsys):
    config = tiny_config("image", tmp_path, model={"variant": variant}, quiet=False, max_num_iterations=60)
    adaptation = type(config.pipeline.model)().adaptation
    config.pipeline.model.adaptation = replace(adaptation, **given)
    train(config)
    told = " ".join(capsys.readouterr().out.split())
    assert ("itself" in told) is (said is not None)
    assert said is None or said in told


def test_a_resumed_run_says_where_other_times_hold(capsys):
    saved = Run().to(8).checkpoint()
    capsys.readouterr()
    Run(checkpoint=saved)
    assert "The times of the checkpoint hold" not in capsys.readouterr().out
    Run(replace(SCHEDULE, prune_at=50), checkpoint=saved)
    said = " ".join(capsys.readouterr().out.split())
    assert "The times of the checkpoint hold (densify_at 10, decay_start 25, prune_at 45; steps)" in said


def test_a_resumed_run_aims_at_the_size_of_the_widths_that_it_began_with():
    config = replace(SCHEDULE, unit="percent")
    whole = Run(config, "aire_rounds").to(8)
    saved = whole.checkpoint()
    whole.to(TOTAL)
    again = Run(config, "aire_rounds", checkpoint=saved, widths=(30, 20)).to(TOTAL)
    assert whole.widths != [26, 11]  # neurons went
    assert same(again.weights(), whole.weights())
    saved["model"]["_extra_state"]["large_widths"] = [13, "all"]
    with pytest.raises(SystemExit, match="no widths; it is damaged"):
        Run(config, "aire_rounds", checkpoint=saved)


@pytest.mark.parametrize("variant", ["large", "aire_early", "aire_rounds"])
def test_a_variant_with_times_of_its_own_does_not_mind_the_others(variant):
    late = AireConfig(decay_start=45.0, prune_at=40.0)
    ImageModelConfig(variant=variant, adaptation=late).check()
