"""`hpa-lightning data check`: everything that can be wrong with a stream's data; `data filter` is another file's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hpa_lightning.cli import data_filter
from hpa_lightning.cli.errors import UserError
from hpa_lightning.cli.parser import CommandParser

if TYPE_CHECKING:
    from hpa_lightning.data.collator import MLLMCollator
    from hpa_lightning.data.datamodule import CVITDataModule

#: As in `hpa_lightning.data.benchmarks`, whose import loads PyTorch.
BENCHMARKS = ("ucit", "mllm-dcl", "coin", "hpa")
_DESCRIPTION = """\
Check all data of a stream and gather every problem; exit status 1 if there is one. --config is the configuration of a
fit here; options of this command are read from the YAML file --options."""

_USAGE = "expected `hpa-lightning data check` or `hpa-lightning data filter`"


def parser() -> CommandParser:
    """Options of `data check`."""
    parser = CommandParser("data check", _DESCRIPTION, config="--options")
    add = parser.add_argument
    add("--config", type=Path, help="YAML of `hpa-lightning fit`; `data` and `model` are read")
    add("--benchmark", type=str, help=f"{', '.join(BENCHMARKS)}, or a description of your own; with --folder")
    add("--folder", type=str, help="the benchmark's folder")
    add("--imports", type=str, nargs="+", help="packages whose classes a description may name; their code runs")
    add("--processor", type=str, help="name or folder; that of `data` or `model` by default")
    add("--tokens", type=int, default=200, help="records of each set whose tokens are counted, 0 for all")
    add("--no-tokens", action="store_true", help="count none; no processor is needed")
    add("--max-pixels", type=Optional[int], help="largest image (default: max_image_pixels of `data`)")  # noqa: UP045
    add("--decode", action="store_true", help="read whole images, not their headers alone")
    return parser


#: Second word -> parser.
PARSERS = {"check": parser, "filter": data_filter.parser}


def run(arguments: Sequence[str]) -> None:
    """Check the data of a configuration or of a benchmark's folder; exit status 1 if something is wrong. Or filter."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\n{_DESCRIPTION}\n\n{data_filter.DESCRIPTION}")
        return
    if arguments[:1] == ["filter"]:
        data_filter.run(arguments[1:])
        return
    if arguments[:1] != ["check"]:
        raise UserError(f"{_USAGE}; --help after one lists its options")
    options = parser().parse_args(arguments[1:])
    if (options.config is None) == (options.benchmark is None):
        raise ValueError("expected either --config, or --benchmark with its --folder.")
    if (options.folder is None) != (options.benchmark is None):
        raise ValueError("--benchmark and --folder belong together.")
    from hpa_lightning.data.benchmarks import BenchmarkDataModule
    from hpa_lightning.data.checking import check_stream, summary

    if options.benchmark is not None:
        stream: CVITDataModule = BenchmarkDataModule(options.benchmark, options.folder, imports=options.imports)
        processor = options.processor
    else:
        stream, processor = _from_config(options.config, options.processor)
    collator = None if options.no_tokens else _collator(stream, processor)
    parts = check_stream(stream, collator, options.tokens or None, options.max_pixels, options.decode, progress=True)
    print(summary(parts))
    if any(part.problems for part in parts):
        raise SystemExit(1)


def _from_config(config: Path, processor: str | None) -> tuple[CVITDataModule, Any]:
    from jsonargparse import ArgumentParser

    from hpa_lightning.data.datamodule import CVITDataModule
    from hpa_lightning.declarations import instantiate, load_yaml
    from hpa_lightning.parsing import read_text

    content = load_yaml(read_text(config), str(config))
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"{config} has no section `data`; expected a configuration of `hpa-lightning fit`.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CVITDataModule, "data")
    stream = instantiate(parser, {"data": content["data"]}, str(config)).data
    model = content.get("model")
    settings = model.get("init_args") if isinstance(model, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    return stream, processor or settings.get("processor") or settings.get("model")


def _collator(stream: CVITDataModule, processor: Any) -> MLLMCollator:
    stream.processor = stream.processor or processor
    if stream.processor is None:
        raise ValueError("no processor to count tokens with; pass --processor, or --no-tokens to leave them out.")
    return stream.collator
