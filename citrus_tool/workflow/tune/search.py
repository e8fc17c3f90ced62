"""The trials of a search, one after the other: each asks for a recipe, trains it and judges it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from citrus_tool import files
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices import Device
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import CertifySettings, TuneSettings
from citrus_tool.choices.space import Space, plain, with_fields
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.errors import InputFileError, InterruptedRunError, UsageError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.progress import Progress, Staged
from citrus_tool.results.record import Place, from_json, to_json
from citrus_tool.results.trial import Trial
from citrus_tool.threat import Threat
from citrus_tool.training import checkpoint, trainer
from citrus_tool.workflow.tune.front import hopeless
from citrus_tool.workflow.tune.study import distribution, opened, sampler


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One search: what it is about and where it lives. `run` takes it to its end."""

    network: Network
    train: Dataset
    validation: Dataset
    recipe: Recipe
    settings: TuneSettings
    space: Space
    run_dir: Path
    storage: Path
    device: Device
    save: Callable[[Network, Path, Mapping[str, str]], OnnxModel]
    progress: Progress

    @property
    def trials(self) -> Path:
        """The folder of the trials, each in one of its own."""
        return self.run_dir / "trials"

    @property
    def origin(self) -> dict[str, Any]:
        """Everything that the trials depend on, as JSON values."""
        settings = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in ("trials", "weight")}
        return {
            **{f"recipe field {name}": value for name, value in self.recipe.to_json().items()},
            **{f"space of {name}": value for name, value in plain(self.space).items()},
            **settings,
            "train data": self.train.sha256(),
            "validation data": self.validation.sha256(),
            "network": trainer.fingerprint(self.network),
        }

    def run(self) -> list[Trial]:
        """All trials up to the wanted number; those that are there are not done again."""
        first = {name: values.nearest(getattr(self.recipe, name)) for name, values in self.space.items()}
        study = opened(self.storage, self.origin, first)
        distributions = {name: distribution(values) for name, values in self.space.items()}
        finished: list[Trial] = []
        while len(finished) < self.settings.trials:
            known = study.get_trials(deepcopy=False)
            finished = [self._read(trial) for trial in known if trial.state.is_finished()]
            if len(finished) >= self.settings.trials:
                break
            begun = next((trial for trial in known if trial.state == TrialState.RUNNING), None)
            if begun is None:
                study.sampler = sampler(self.settings.seed, len(finished))
                number = study.ask(distributions).number
                begun = study.get_trials(deepcopy=False)[number]
            found = self._trial(begun, finished)
            values = None if found.standard is None else list(found.figures())
            states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            study.tell(found.number, values, state=states[found.state])
        self.progress.finish()
        return finished[: self.settings.trials]

    def _folder(self, number: int) -> Path:
        return self.trials / f"{number}"

    def _read(self, trial: FrozenTrial) -> Trial:
        """The result of a finished trial, from its folder."""
        path = self._folder(trial.number) / "result.json"
        try:
            found = from_json(Trial, json.loads(path.read_text(encoding="utf-8")), Place(where="", remedy=""))
            if (found.number, dict(found.parameters)) != (trial.number, dict(trial.params)):
                raise ValueError("the study has other parameters")
            return found
        except OSError as error:
            raise InputFileError(
                f"{path}: cannot be read ({error.strerror}); the study and its run folder belong together."
            ) from None
        except (ValueError, InputFileError) as error:
            raise InputFileError(f"{path}: is no trial's result ({error}); start a new --run-dir.") from None

    def _trial(self, trial: FrozenTrial, finished: Sequence[Trial]) -> Trial:
        """Trains and judges one recipe, from wherever its folder stands."""
        folder, parameters = self._folder(trial.number), dict(trial.params)
        if (folder / "result.json").is_file():
            return self._read(trial)
        found = Trial(
            number=trial.number,
            state="failed",
            parameters=parameters,
            standard=None,
            certified=None,
            best_epoch=0,
            epochs=0,
            seconds=0.0,
            validations=(),
        )
        try:
            recipe = with_fields(self.recipe, parameters)
        except UsageError as error:  # ends of two ranges may exclude each other
            return self._written(dataclasses.replace(found, reason=str(error)), folder)
        try:
            found = self._judged(found, recipe, folder, finished)
        except trainer.DivergedError as error:
            found = dataclasses.replace(found, reason=str(error))
        except (InterruptedRunError, KeyboardInterrupt):
            raise InterruptedRunError(
                f"tuning stopped in trial {trial.number + 1} of {self.settings.trials}; its state is in {self.run_dir}:"
                " run the same command again with --resume."
            ) from None
        return self._written(found, folder)

    def _written(self, found: Trial, folder: Path) -> Trial:
        """`found`, after its result is in the trial's folder."""
        files.require_writable_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "result.json", to_json(found))
        (folder / checkpoint.FILE_NAME).unlink(missing_ok=True)
        return found

    def _judged(self, begun: Trial, recipe: Recipe, folder: Path, finished: Sequence[Trial]) -> Trial:
        comparable = [trial for trial in finished if trial.state != "failed"]

        def enough(entry: Mapping[str, Any]) -> bool:
            if not self.settings.prune or entry["epoch"] == recipe.epochs:
                return False
            return hopeless(_validation(entry, recipe), comparable)

        stage = f"trial {begun.number + 1}/{self.settings.trials}: "
        context = RunContext(device=self.device, progress=Staged(self.progress, stage))
        kept = dataclasses.replace(context, run_dir=folder, resume=checkpoint.exists(folder))
        result = trainer.fit(self.network, self.train, self.validation, recipe, kept, enough=enough)
        judged = [e for e in result.history if e["phase"] == "full" and e["validation_standard_accuracy"] is not None]
        begun = dataclasses.replace(
            begun,
            state="pruned",
            best_epoch=result.best_epoch,
            epochs=len(result.history),
            seconds=result.seconds,
            validations=tuple(_validation(entry, recipe) for entry in judged),
        )
        if len(result.history) < recipe.epochs:
            return begun
        metadata = {"method": recipe.method, "eps": f"{recipe.eps:g}", "trial": str(begun.number)}
        model = self.save(result.network, folder / "model.onnx", metadata)
        settings = CertifySettings(
            group_size=self.settings.group_size,
            bounds=self.settings.bounds,
            arithmetic=self.settings.arithmetic,
            limit=self.settings.inputs,
            attack_steps=0,
            attack_restarts=0,
        )
        threat = Threat(eps=recipe.eps)
        certificate = certify_uap(
            model,
            self.validation,
            threat,
            settings,
            context,
        ).to_json()
        best = result.history[result.best_epoch - 1]
        return dataclasses.replace(
            begun,
            state="complete",
            standard=best["validation_standard_accuracy"],
            certified=100 * certificate["certified"] / certificate["inputs"],
        )


def _validation(entry: Mapping[str, Any], recipe: Recipe) -> tuple[float, float, float]:
    """A validated epoch: its share of the epochs, standard accuracy, certified accuracy of single inputs."""
    certified = entry["validation_certified_accuracy"]
    return entry["epoch"] / recipe.epochs, entry["validation_standard_accuracy"], certified or 0.0
