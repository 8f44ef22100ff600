"""Load what `python -m executor embed` wrote into Qdrant, and let searches change over to it at once.

    pip install qdrant-client
    python -m examples.into_qdrant photos.parquet --url http://127.0.0.1:6333

The collection is named after the space of the embeddings, so no two models share one. Programs search the alias
`photos`: it moves to the new collection when that is complete, and back again if you like. Without a server,
`--path FOLDER` keeps the collections in a folder, by Qdrant's local mode.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

BATCH = 256
KEPT = ("id", "uri", "space")  # with each vector


def main() -> None:
    """Load a file and move the alias."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a parquet file that `embed` wrote")
    parser.add_argument("--alias", default="photos", help="the name that programs search")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a Qdrant server")
    where.add_argument("--path", help="a folder for Qdrant's local mode")
    arguments = parser.parse_args()
    client = QdrantClient(url=arguments.url) if arguments.url else QdrantClient(path=arguments.path)
    collection = load(client, arguments.file)
    swap(client, arguments.alias, collection)
    print(f"{client.count(collection).count} pictures in {collection}, searched as {arguments.alias}")
    client.close()


def load(client: QdrantClient, file: str, prefix: str = "space") -> str:
    """Load the rows that have an embedding, and return the name of their collection. Loading again changes nothing.

    Args: prefix: the name begins with it, and ends with the space of the vectors.
    """
    with pq.ParquetFile(file) as table:
        dim = table.schema_arrow.field("embedding").type.list_size
        first = next(row for row in rows(table) if row["space"])
        collection = f"{prefix}-{first['space']}".replace("/", "-")
        if not client.collection_exists(collection):
            vectors = models.VectorParams(size=dim, distance=models.Distance.COSINE)
            client.create_collection(collection, vectors_config=vectors)
        client.upload_points(
            collection,
            (
                models.PointStruct(id=number, vector=row["embedding"], payload={name: row[name] for name in KEPT})
                for number, row in enumerate(rows(table))
                if row["error"] is None
            ),
            batch_size=BATCH,
            wait=True,
        )
    return collection


def rows(table: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    """Yield the rows; only a few are in memory at a time."""
    for batch in table.iter_batches(BATCH):
        yield from batch.to_pylist()


def swap(client: QdrantClient, alias: str, collection: str) -> None:
    """Let `alias` mean `collection` from now on; both steps are one operation for whoever searches."""
    present = {each.alias_name for each in client.get_aliases().aliases}
    away = [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))] if alias in present else []
    to = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))
    client.update_collection_aliases(change_aliases_operations=[*away, to])


if __name__ == "__main__":
    main()
