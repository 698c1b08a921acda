"""`omniopd export`: a policy with its card, or a run's tables as a data set, into a folder and onto a model hub."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

from ..store import files
from ..store.config import Config
from ..store.errors import InputError, first_line
from ..store.layout import RunDir
from ..train.export import Dtype, export
from .card import markdown, read_card

_TABLES = ("trajectories", "chunks", "rollouts")
_ROWS = 4096
"""Rows held at a time."""


def export_policy(
    run: RunDir, config: Config, after: int | None, folder: Path, dtype: Dtype, *, adapter: bool = False
) -> str:
    """Copy a policy, and write its card as README.md. Returns a line about it; arguments and errors as `export`'s."""
    card = read_card(run, config, after).model_copy(update={"name": folder.resolve().name})
    return export(run, after, folder, dtype, adapter=adapter, readme=markdown(card, adapter=adapter))


def export_dataset(run: RunDir, folder: Path) -> str:
    """Write trajectories, chunks and rollouts of all rounds as a data set of three configurations, with its card.
    Returns a line about it.

    Raises:
        InputError: there is no trajectory yet.
        UsageError: the folder exists.
        TableError: a file is missing or damaged.
    """
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    if not any(round_.trajectories.manifest.rows for round_ in run.rounds()):
        raise InputError(f"{run.path} has no trajectory yet.", f"Run `omniopd generate {run.path}` first.")
    rows: dict[str, int] = dict.fromkeys(_TABLES, 0)
    with files.new_folder(folder) as new:
        for round_ in run.rounds():
            for table in (table for table in round_.tables if table.spec.name in _TABLES and table.manifest.rows):
                path = new / table.spec.name / f"round-{round_.index:03d}.parquet"
                path.parent.mkdir(exist_ok=True)
                # By the schema: what an older version has left out is null.
                source = ds.dataset(table.files(), schema=table.spec.schema, format="parquet")
                with pq.ParquetWriter(path, table.spec.schema, compression="zstd") as writer:
                    for batch in source.to_batches(batch_size=_ROWS):
                        writer.write_batch(batch)
                rows[table.spec.name] += table.manifest.rows
        (new / "README.md").write_text(_dataset_card(run, folder.resolve().name, rows), encoding="utf-8")
    return f"{', '.join(f'{count:,} {name}' for name, count in rows.items())}: {folder}"


def check_hub() -> None:
    """Refuse to go on where the hub would not know who pushes.

    Raises:
        InputError: there is no token.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise InputError("No token of the Hugging Face hub is here.", "Run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str, kind: Literal["model", "dataset"], *, public: bool) -> str:
    """Upload a folder, and make the repository if it is not there. Returns a line with its address.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub(repo):
        address = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, repo_type=kind, commit_message="omniopd export")
    return f"pushed to {address}"


@contextlib.contextmanager
def _hub(repo: str) -> Generator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # its client's
    )

    try:
        yield
    except HfHubHTTPError as error:
        reason = first_line(error.server_message or error)
        fix = "Check the token's rights (it needs to write) and the name: user-or-organisation/name."
        raise InputError(f"The hub refuses {repo}: {error.response.status_code}: {reason}.", fix) from error
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository.", "Example: my-name/my-student.") from error
    except (HTTPError, OSError) as error:
        problem = f"The hub cannot be reached ({type(error).__name__})."
        raise InputError(problem, "Check the network, or HF_ENDPOINT.") from error


def _dataset_card(run: RunDir, name: str, rows: dict[str, int]) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    from ..store.schema import TABLES
    from ..store.sql import doc_and_unit

    def describe(field: Any) -> str:
        doc, unit = doc_and_unit(field)
        return (f"{doc} [{unit}]" if unit else doc).replace("|", "\\|")

    data = DatasetCardData(
        pretty_name=name, task_categories=["text-generation"], tags=["omniopd", "on-policy-distillation"],
        configs=[
            {"config_name": table, "data_files": [{"split": "train", "path": f"{table}/*.parquet"}]}
            for table in _TABLES if rows[table]
        ],
    )  # fmt: skip
    tables = [(TABLES[table], rows[table]) for table in _TABLES if rows[table]]
    text = Path(__file__).with_name("dataset_card.md.j2").read_text(encoding="utf-8")
    card = DatasetCard.from_template(
        data, template_str=text, name=name, tables=tables, rounds=len(run.rounds()), describe=describe
    )  # fmt: skip
    return str(card)
