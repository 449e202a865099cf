"""Data sets of the hub: opened at a commit, streamed, and what is said when the hub does not give them."""

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
    """A data set that was opened, but not read."""

    data: Any
    """A `datasets.IterableDataset`."""
    dataset: str
    options: dict[str, Any]
    """Of `datasets.load_dataset`, with the commit as `revision`."""
    gated: str | None
    """`auto` or `manual`, where terms must be accepted."""
    licence: str | None
    """As its card states it."""

    @property
    def tasks(self) -> int:
        return max(1, min(int(self.data.n_shards), _MOST_TASKS))


def open_hub(name: str, source: HubSource) -> HubData:
    """Open a data set at the commit that its revision stands for now. A local folder has none.

    Raises:
        DataError: it is not there, not given to us, or its columns lack a field of the format.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    _check_ends()
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
    except Exception as error:  # the clients raise many kinds: no network, no such name, subset, split or access
        raise hub_error(name, source.dataset, "opened", error) from None
    missing = [f for f in Formatter(source.format).fields if columns is not None and not has_field(columns, f)]
    if missing:
        raise DataError(
            f"data.sources.{name}.format: {source.dataset!r} has no field {missing[0]!r}; it has {', '.join(columns)}"
        )
    card = getattr(info, "card_data", None)
    licence = card.get("license") if card else None
    return HubData(data, dataset, options, getattr(info, "gated", None) or None, str(licence) if licence else None)


def hub_error(name: str, dataset: str, what: str, error: BaseException) -> DataError:
    """The error for a data set that the hub does not give, with what helps against it."""
    chain = list(_chain(error))
    kinds = {type(each).__name__ for each in chain}
    words = " ".join(str(each) for each in chain).lower()
    if "GatedRepoError" in kinds or "is a gated dataset" in words:
        help_ = "it is gated: accept its terms on its page, and set HF_TOKEN to a token that may read it,"
    elif "RevisionNotFoundError" in kinds or words.startswith("revision"):
        help_ = "check revision,"
    elif kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        help_ = "check dataset; a private one needs HF_TOKEN,"
    elif kinds.intersection(_NETWORK):
        help_ = "check the network and HF_ENDPOINT,"
    else:
        help_ = "check dataset, subset, data_dir, split, the network and HF_TOKEN,"
    return DataError(
        f"data.sources.{name}: the data set {dataset!r} cannot be {what} ({type(error).__name__}: "
        f"{first_line(error)}); {help_} or download it and use a jsonl or parquet source"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _check_ends() -> None:
    from megatron_octo.data.hub_stream import check_ends

    check_ends()


class HubRows(HuggingFaceDatasetReader):
    """Rows of a data set of the hub, streamed."""

    def __init__(self, name: str, dataset: str, options: dict[str, Any], formatter: Formatter, tally: Tally) -> None:
        super().__init__(dataset, dataset_options=options, streaming=True)
        self._source, self._format, self._tally = name, formatter, tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        _check_ends()
        try:
            yield from super().run(data, rank, world_size)
        except (OctoError, GeneratorExit):
            raise
        except Exception as error:  # of the network, of the file's form, of rows that do not fit one another
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
