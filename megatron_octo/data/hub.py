"""Data sets of the Hugging Face hub: opening them at a commit, streaming them, and explaining errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from megatron_octo.data.formats import Formatter
from megatron_octo.data.rows.row import BadRow, has_field
from megatron_octo.data.tally import Tally
from megatron_octo.errors import DataError, OctoError, first_line
from megatron_octo.recipe.data import HubSource
from megatron_octo.runtime.hub import local_folder

_MOST_TASKS = 256
_NETWORK = ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "OfflineModeIsEnabled", "ProxyError")


@dataclass(frozen=True)
class HubData:
    """A data set that is open but not yet read."""

    data: Any
    """A `datasets.IterableDataset`."""
    dataset: str
    """Name on the hub, or the path of a local folder."""
    options: dict[str, Any]
    """Arguments of `datasets.load_dataset`, with the commit as `revision`."""
    gated: str | None
    """`auto` or `manual` if terms must be accepted. None: they need not be."""
    licence: str | None
    """The licence that its card states."""

    @property
    def tasks(self) -> int:
        return max(1, min(int(self.data.n_shards), _MOST_TASKS))


def open_hub(name: str, source: HubSource) -> HubData:
    """Open a data set at the commit that its revision means now. A local folder has no commit.

    Raises:
        DataError: it does not exist, access is refused, or its columns lack a field of the format.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    _check_sizes()
    options: dict[str, Any] = {"name": source.subset, "data_dir": source.data_dir, "split": source.split}
    folder = local_folder(source.dataset, DataError, f"data.sources.{name}.dataset")
    dataset = source.dataset if folder is None else str(folder)
    info: Any = None
    try:
        if folder is None:
            info = HfApi().dataset_info(source.dataset, revision=source.revision)
        options["revision"] = None if info is None else info.sha
        data = load_dataset(dataset, streaming=True, **options)
        columns = data.column_names
    except Exception as error:  # many types: no network, no such name, subset or split, no access
        raise hub_error(name, source.dataset, "opened", error) from None
    missing = [f for f in Formatter(source.format).fields if columns is not None and not has_field(columns, f)]
    if missing:
        raise DataError(
            f"data.sources.{name}.format: {source.dataset!r} has no field {missing[0]!r}; it has {', '.join(columns)}"
        )
    card = getattr(info, "card_data", None)
    licence = card.get("license") if card else None
    return HubData(data, dataset, options, getattr(info, "gated", None) or None, str(licence) if licence else None)


def hub_error(name: str, dataset: str, action: str, error: BaseException) -> DataError:
    """The error for a data set that the hub does not provide, with a way out.

    Args:
        action: what cannot be done with it: opened, read.
    """
    chain = list(_chain(error))
    kinds = {type(each).__name__ for each in chain}
    words = " ".join(str(each) for each in chain).lower()
    if "GatedRepoError" in kinds or "is a gated dataset" in words:
        way_out = "it is gated: accept its terms on its page, and set HF_TOKEN to a token that may read it,"
    elif "RevisionNotFoundError" in kinds or words.startswith("revision"):
        way_out = "check revision,"
    elif kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        way_out = "check dataset; a private one needs HF_TOKEN,"
    elif kinds.intersection(_NETWORK):
        way_out = "check the network and HF_ENDPOINT,"
    else:
        way_out = "check dataset, subset, data_dir, split, the network and HF_TOKEN,"
    return DataError(
        f"data.sources.{name}: the data set {dataset!r} cannot be {action} ({type(error).__name__}: "
        f"{first_line(error)}); {way_out} or download it and use a jsonl or parquet source"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _check_sizes() -> None:
    from megatron_octo.data.hub_stream import install_size_checks

    install_size_checks()


class HubRows(HuggingFaceDatasetReader):
    """The first step of a pipeline: rows of a data set of the hub, streamed."""

    def __init__(self, name: str, dataset: str, options: dict[str, Any], formatter: Formatter, tally: Tally) -> None:
        super().__init__(dataset, dataset_options=options, streaming=True)
        self._source, self._format, self._tally = name, formatter, tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        _check_sizes()
        try:
            yield from super().run(data, rank, world_size)
        except (OctoError, GeneratorExit):
            raise
        except Exception as error:  # of the network, of the file's format, of rows with different columns
            raise hub_error(self._source, self.dataset, "read to its end", error) from None

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document | None:
        tally = self._tally
        tally.rows += 1
        tally.lines[source_file] = tally.rows
        try:
            return Document(self._format(data), id="")
        except BadRow as reason:
            tally.bad_row(str(reason), source_file, tally.rows - 1)
            return None
