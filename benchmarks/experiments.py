"""experiments.yaml: what is run for the results page and the ablations, and which settings that comes to."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster.errors import ParamsError, UserError, nearest
from deepcluster.params import Params
from deepcluster.params.edit import overridden
from deepcluster.params.file import parse, read_text

FILE = Path(__file__).with_name("experiments.yaml")
CHECKOUT = Path(__file__).resolve().parents[1]
Group = Literal["results", "ablations"]


class ExperimentsError(UserError):
    """experiments.yaml has a mistake, or what was asked for is not in it."""


def _counted(value: Any) -> Any:
    """5 for the seeds 1 to 5; a list as it is."""
    return list(range(1, value + 1)) if isinstance(value, int) and not isinstance(value, bool) else value


class Experiment(BaseModel):
    """One entry: a recipe, changes to it, and the seeds to run it with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    group: Group
    asks: Annotated[str, Field(min_length=1)]
    """One sentence: what it is run for; in the pages it says what a row is."""
    recipe: str | None = None
    """A file of recipes/, or `params` for params.yaml itself. None: the base's, else params."""
    set: list[str] = Field(default_factory=list)
    """KEY=VALUE, as `deepcluster set` takes it: changes to the base, else to the recipe."""
    seeds: Annotated[list[int], BeforeValidator(_counted)]
    base: str | None = None
    """The experiment whose settings it starts from, and that an ablation is compared with."""
    root: str | None = None
    """Which `--root NAME=FOLDER` holds its images. None: the base's, else that of data.name, if any is given."""
    inherited: list[str] = Field(default_factory=list, exclude=True)
    """What bases set and this one does not; filled in when the file is read."""

    @property
    def recipe_file(self) -> str:
        return "params.yaml" if self.recipe in (None, "params") else f"recipes/{self.recipe}.yaml"

    @property
    def settings(self) -> list[str]:
        """KEY=VALUE of everything that differs from the recipe."""
        return [*self.inherited, *self.set]

    def overrides(self, seed: int, root: str | None = None) -> list[str]:
        """KEY=VALUE of one run."""
        placed = [f"data.root={root}"] if root is not None else []
        return [*self.settings, f"seed={seed}", *placed]

    def params(self, seed: int, project: Path = CHECKOUT) -> Params:
        """The settings of one run, as the project's recipe has them now; ParamsError if they are not valid."""
        try:
            return overridden(_content(project / self.recipe_file), self.overrides(seed), Path(self.recipe_file))
        except ParamsError as error:
            raise ExperimentsError(f"experiment {self.name}: {error}") from None


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    return parse(read_text(path), path)


def load_experiments(path: Path = FILE) -> dict[str, Experiment]:
    """The experiments by name, in the file's order; ExperimentsError with every mistake, one a line."""
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ExperimentsError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ExperimentsError(f"{path}: expected experiments by name; got {type(content).__name__}")
    found, mistakes = dict[str, Experiment](), list[str]()
    for name, entry in content.items():
        try:
            found[str(name)] = Experiment.model_validate({"name": str(name), **(entry or {})})
        except (ValidationError, TypeError) as error:
            mistakes += _mistakes(f"{path}: {name}", error)
    mistakes += [f"{path}: {line}" for line in _contradictions(found, content)]
    if mistakes:
        raise ExperimentsError("\n".join(mistakes))
    return {name: _with_base(entry, found, path) for name, entry in found.items()}


def _with_base(
    entry: Experiment, entries: dict[str, Experiment], path: Path, below: tuple[str, ...] = ()
) -> Experiment:
    """The entry with what it takes over from its base, and that from its own."""
    if entry.base is None:
        return entry
    if entry.name in below:
        raise ExperimentsError(f"{path}: {entry.name}: base: leads back to itself")
    base = _with_base(entries[entry.base], entries, path, (*below, entry.name))
    own = {setting.partition("=")[0].strip() for setting in entry.set}
    inherited = [setting for setting in base.settings if setting.partition("=")[0].strip() not in own]
    taken = {"recipe": entry.recipe or base.recipe, "root": entry.root or base.root, "inherited": inherited}
    return entry.model_copy(update=taken)


def chosen(experiments: dict[str, Experiment], names: list[str]) -> list[Experiment]:
    """The experiments of these names, or of these groups; all, if none is named."""
    found = dict[str, Experiment]()
    for name in names or list(experiments):
        group = {key: each for key, each in experiments.items() if each.group == name}
        if name not in experiments and not group:
            raise ExperimentsError(f"{name}: no such experiment{nearest(name, experiments)}")
        found |= group or {name: experiments[name]}
    return list(found.values())


def _contradictions(found: dict[str, Experiment], content: dict[Any, Any]) -> list[str]:
    """What is wrong between entries that are each valid."""
    lines = []
    for name, entry in found.items():
        if len(set(entry.seeds)) < len(entry.seeds) or not entry.seeds:
            lines.append(f"{name}: seeds: must be a number of seeds, or a list of different ones; got {entry.seeds}")
        if entry.base == name or (entry.base is not None and entry.base not in map(str, content)):
            lines.append(f"{name}: base: must be another experiment; got {entry.base!r}")
        if "inherited" in (content[name] or {}):
            lines.append(f"{name}: inherited: is filled in from `base`")
        if any(setting.partition("=")[0].strip() in ("seed", "data.root") for setting in entry.set):
            lines.append(f"{name}: set: seed and data.root come from `seeds` and `root`")
        if name in ("results", "ablations"):
            lines.append(f"{name}: is the name of a group")
    return lines


def _mistakes(where: str, error: ValidationError | TypeError) -> list[str]:
    if isinstance(error, TypeError):
        return [f"{where}: expected keys such as group, asks, recipe, set, seeds"]
    return [
        f"{where}: {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}; got {mistake['input']!r}"
        for mistake in error.errors()
    ]
