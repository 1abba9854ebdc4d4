"""The panel in nerfstudio's viewer: where the adaptation stands, what its neurons give, and buttons to step in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import viser
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerControl

from aire_nerfstudio.adaptation.control import Action, Refused, Request
from aire_nerfstudio.errors import first_line
from aire_nerfstudio.viewer.figures import contribution_figure, curve_figure, empty_figure, frequency_figure
from aire_nerfstudio.viewer.first_view import look_from_first_view
from aire_nerfstudio.viewer.watched import Asked, Watched
from aire_nerfstudio.viewer.words import progress_percent, size_table, stage_line

# Seconds between two updates, and how many times as long as the last update took to wait at the least.
LEAST_SECONDS, PATIENCE = 1.0, 20.0
HINTS: dict[Action, str] = {
    "densify": "Add input neurons, as densify-from says, after the present step.",
    "decay": "Choose the weakest neurons and press their outgoing weights towards 0 until they are removed.",
    "prune": "Remove the neurons that are decaying, after the present step.",
    "skip": "Do now what the schedule has next.",
}
LABELS: dict[Action, str] = {
    "densify": "Densify now",
    "decay": "Start decay now",
    "prune": "Prune now",
    "skip": "Skip to next stage",
}
FREEZE, UNFREEZE = "Freeze schedule", "Let schedule go on"


class AdaptationPanel(ViewerControl):
    """Found by nerfstudio's viewer as an attribute of the model; without a viewer it costs nothing.

    A request is done between two steps of the training, under its lock, and logged as a scheduled event is.

    Args:
        run: the adaptation that is watched.
        by_hand: does what the buttons ask for.
    """

    def __init__(self, run: Watched, by_hand: Asked) -> None:
        self._run, self._by_hand = run, by_hand
        self._server: viser.ViserServer | None = None
        self._due = 0.0
        self._has_failed = False

    # --- called by nerfstudio ----------------------------------------------------------------------------------------

    def _setup(self, viewer: Any) -> None:
        super()._setup(viewer)
        self._server = viewer.viser_server
        self._trainer = viewer.trainer
        self._lock = viewer.train_lock if viewer.train_lock is not None else contextlib.nullcontext()
        with _place(self._server):
            self._build(self._server.gui)
        # Not in viser's own thread, which must not wait for a training step.
        self._server.on_client_connect(
            lambda client: threading.Thread(target=self._greet, args=(client,), daemon=True).start()
        )
        if self._trainer is None:
            self.update()

    def _greet(self, client: viser.ClientHandle) -> None:
        dataset = self.viewer.pipeline.datamanager.train_dataset
        if dataset is not None:
            look_from_first_view(client, dataset.cameras)
        with self._lock:
            self.update()

    # --- called by the model -----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Show where training stands, if someone looks and the last time is long enough ago."""
        if self._server is None or time.monotonic() < self._due or not self._server.get_clients():
            return
        began = time.monotonic()
        self._try_update()
        took = time.monotonic() - began
        self._due = began + max(LEAST_SECONDS, PATIENCE * took)

    def finish(self) -> None:
        """Show where training ended."""
        if self._server is not None:
            self._try_update()

    def _try_update(self) -> None:
        """A plot that fails does not end a training: it is said once."""
        try:
            self.update()
        except Exception as error:
            if not self._has_failed:
                CONSOLE.log(f"the viewer's panel could not be drawn ({first_line(error)})")
            self._has_failed = True

    # --- the panel ---------------------------------------------------------------------------------------------------

    def _build(self, gui: Any) -> None:
        # No folders: in a tab that is not shown, viser's may stay closed over what they hold.
        self._stage = gui.add_markdown("waiting for the first step")
        self._progress = gui.add_progress_bar(0.0)
        self._sizes = gui.add_markdown("")
        gui.add_markdown("**Contributions** of the neurons, strongest first")
        self._contributions = gui.add_plotly(empty_figure(), aspect=1.2)
        gui.add_markdown("**By hand**, after the present step")
        self._answer = gui.add_markdown("_Nothing was asked for yet._")
        self._count = gui.add_number("Neurons", 0, min=0, step=1, hint="How many; 0: as configured.")
        self._steps = gui.add_number("Decay steps", 0, min=0, step=1, hint="How long; 0: as scheduled.")
        for action, label in LABELS.items():
            gui.add_button(label, hint=HINTS[action]).on_click(self._press(action))
        # viser's buttons keep their label.
        self._freeze = gui.add_button(FREEZE, hint="The schedule's clock stands still; buttons work.")
        self._freeze.on_click(lambda event: self._ask_to_freeze(True))
        self._unfreeze = gui.add_button(UNFREEZE, hint="Everything comes later by as much.", visible=False)
        self._unfreeze.on_click(lambda event: self._ask_to_freeze(False))
        gui.add_button("Export", hint="Write the picture or the surface as it is now.").on_click(self._export)
        gui.add_button("Save checkpoint").on_click(self._save)
        parts = gui.add_checkbox(
            "Render parts",
            bool(self._run.config.shows_parts),
            hint="More outputs to choose in the tab Control: important and unimportant neurons alone, and the "
            "frequency that drives each point. Three times the work.",
        )
        parts.on_update(lambda event: self._show("shows_parts", parts.value))
        if hasattr(self._run.config, "shows_error"):
            error = gui.add_checkbox(
                "Render error",
                bool(self._run.config.shows_error),
                hint="One more output to choose: the distance from the surface that is learned. Takes its time.",
            )
            error.on_update(lambda event: self._show("shows_error", error.value))
        gui.add_markdown("**Curves**")
        self._curves = gui.add_plotly(empty_figure(), aspect=1.2)
        gui.add_markdown("**Input frequencies**")
        self._frequencies = gui.add_plotly(empty_figure(), aspect=1.0)

    def update(self) -> None:
        """Draw everything anew."""
        run = self._run
        status, record = run.status(), run.record
        step, clock = run.position
        snapshot = run.snapshot()
        self._stage.content = stage_line(status, step, clock, run.is_frozen)
        self._progress.value = progress_percent(status, clock)
        self._sizes.content = size_table(snapshot, record, status, *run.sizes)
        self._freeze.visible, self._unfreeze.visible = not run.is_frozen, run.is_frozen
        self._contributions.figure = contribution_figure(snapshot)
        self._curves.figure = curve_figure(record, run.history)
        self._frequencies.figure = frequency_figure(snapshot)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _press(self, action: Action) -> Callable[[Any], None]:
        def ask(event: Any) -> None:
            count, steps = int(self._count.value), int(self._steps.value)
            counted = action in ("densify", "decay") and count > 0
            timed = action == "decay" and steps > 0
            request = Request(action, count if counted else None, steps if timed else None)
            self._ask(LABELS[action], lambda done: self._by_hand.ask_for(request, done))

        return ask

    def _ask_to_freeze(self, is_frozen: bool) -> None:
        self._ask(FREEZE if is_frozen else UNFREEZE, lambda done: self._by_hand.ask_to_freeze(is_frozen, done))

    def _export(self, event: Any) -> None:
        def ask(done: Callable[[str], None]) -> None:
            self._by_hand.ask_to_export(self._trainer.base_dir / "exports", done)

        self._ask("Export", ask)

    def _save(self, event: Any) -> None:
        def save() -> str:
            try:
                self._trainer.save_checkpoint(self._trainer.step)
            except (OSError, RuntimeError) as error:
                raise Refused(f"nothing was saved ({first_line(error)})") from error
            return f"saved step {self._trainer.step:,} in {self._trainer.checkpoint_dir}"

        self._ask("Save checkpoint", lambda done: self._by_hand.ask(save, done))

    def _ask(self, what: str, ask: Callable[[Callable[[str], None]], None]) -> None:
        """Pass a request on, if anyone is there to answer it."""
        if self._trainer is None:
            self._say(what, "refused: nothing is training here; use ns-train")
        elif self._trainer.training_state == "completed":
            self._say(what, "refused: the training is over")
        else:
            waits = " until the training is resumed" if self._trainer.training_state == "paused" else ""
            self._say(what, f"waits{waits}")
            ask(lambda answer: self._answered(what, answer))

    def _answered(self, what: str, answer: str) -> None:
        self._say(what, answer)
        self.update()
        self.viewer._trigger_rerender()

    def _say(self, what: str, answer: str) -> None:
        self._answer.content = f"**{what}**: {answer}"

    def _show(self, setting: str, is_shown: bool) -> None:
        setattr(self._run.config, setting, bool(is_shown))
        self.viewer._trigger_rerender()


def _place(server: viser.ViserServer) -> Any:
    """A tab beside nerfstudio's; where its tabs cannot be found, a folder below them."""
    containers = getattr(server.gui, "_container_handle_from_id", {}).values()
    tab = next((handle for handle in containers if isinstance(handle, viser.GuiTabHandle)), None)
    group = getattr(tab, "_parent", None)
    if group is None:
        return server.gui.add_folder("AIRe")
    return cast(Any, group).add_tab("AIRe", viser.Icon.CHART_HISTOGRAM)
