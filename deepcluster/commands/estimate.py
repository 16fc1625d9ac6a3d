"""`deepcluster estimate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepcluster import completion

if TYPE_CHECKING:
    from deepcluster.params import Params

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-S",
        metavar="KEY=VALUE",
        help="As if params.yaml had this value; the file stays as it is. Again for more.",
        show_default=False,
        autocompletion=completion.settings,
    ),
]


def estimate(
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="About how long to measure.")] = 10.0,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in seconds and bytes, instead.")] = False,
) -> None:
    """Say what a whole run will take: time, disk and memory of every stage. Runs nothing, writes nothing.

    Looks at params.yaml and the data set (names and headers, or images.zarr once prepared), then measures this machine
    on random images of that size. Time is that of `deepcluster run` from nothing, on a machine as busy as it is now.
    """
    import json

    from deepcluster.estimate.answer import Answer, table, verdict
    from deepcluster.estimate.answer import as_json as answer_json
    from deepcluster.estimate.forecast import forecast
    from deepcluster.estimate.rates import calibrate
    from deepcluster.estimate.size import data_size
    from deepcluster.inspection.tables import print_table
    from deepcluster.memory import available_memory
    from deepcluster.progress import reporting
    from stages.common import device, faiss_gpu

    params = _params(settings or [])
    size = data_size(params.data)
    available = available_memory()
    with reporting("measure this machine", "seconds"):
        rates = calibrate(params, size, device=device(), gpu=faiss_gpu(), seconds=seconds)
    _refuse_misfits(params, size.count, rates.features)
    free, copies = _disk()
    answer = Answer(forecast(params, size, rates), copies, free, available)
    if as_json:
        print(json.dumps(answer_json(answer) | {"images": size.count, "features": rates.features}, indent=2))
        return
    print(
        f"{params.data.name}: {size.count:,} images of {size.channels} x {size.side} x {size.side} ({size.source}); "
        f"{params.model.arch} on {device()}, {rates.features:,} features, k = {params.cluster.k:,}, "
        f"{params.epochs:,} epochs\n"
    )
    print_table(table(answer))
    print("\n" + "\n".join(verdict(answer)))


def _params(overrides: list[str]) -> "Params":
    """params.yaml with these values, unwritten."""
    from deepcluster.params import PARAMS_FILE
    from deepcluster.params.edit import edited
    from deepcluster.params.file import parse, read_text, validated

    text, _ = edited(read_text(PARAMS_FILE), overrides)
    return validated(parse(text, PARAMS_FILE), PARAMS_FILE)


def _refuse_misfits(params: "Params", images: int, features: int) -> None:
    """What `initialise` would refuse."""
    from deepcluster.errors import ParamsError
    from deepcluster.params import misfits

    if found := list(misfits(params, images=images, features=features)):
        raise ParamsError("\n".join(found))


def _disk() -> tuple[float, int]:
    """Bytes free where artifacts will lie, and how often DVC will keep each: twice where its cache cannot be linked."""
    import shutil

    from deepcluster import layout
    from deepcluster.doctor.project import dvc_cache
    from deepcluster.doctor.storage import existing, usable_links

    folder = existing(layout.DATA)
    free, copies = float(shutil.disk_usage(folder).free), 1
    if Path(".dvc").is_dir():
        cache, wanted = dvc_cache()
        try:
            links = usable_links(existing(cache), folder, wanted)
            copies = 2 if not links or links[0] == "copy" else 1
        except OSError:  # not writable: `deepcluster doctor` says it
            pass
    return free, copies
