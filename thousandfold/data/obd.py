"""The small Open Bandit Data as a log of shown items, fetched from the package index and kept in the user's cache directory.

Saito et al. 2020, "Open Bandit Dataset and Pipeline" (licence of the package: Apache 2.0): 60,000 real impressions of a fashion
shop, 287 clicks, three campaigns, each shown by two policies. Users have no ids: a user is a combination of four hashed
features. Every row is a list of its own, since only one of the three positions of a page was logged.
"""

import os
import pathlib
import tarfile

import polars as pl

from thousandfold.data import packages

ARCHIVE = packages.Package(
    "the small Open Bandit Data", "obp==0.5.7", "obp-0.5.7.tar.gz", "1 MB", "run the command again",
    ("--no-binary", ":all:", "--ignore-requires-python"),
)  # fmt: skip
FOLDER = "obp-0.5.7/obp/dataset/obd/"
CAMPAIGNS = ("all", "men", "women")
POLICIES = ("bts", "random")
ROWS, CLICKS = 60_000, 287
SHA256 = {
    "bts/all/all.csv": "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
    "bts/men/men.csv": "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
    "bts/women/women.csv": "e5d1b49a39b608585a2f3014a3f54970430cd37a495c1b73fceb85cdf428a5b8",
    "random/all/all.csv": "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
    "random/men/men.csv": "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
    "random/women/women.csv": "e65f3bd3beb17664fa69cc129bf7bf852a775f8ffa630506e505fc905315bb34",
    "bts/all/item_context.csv": "5d4359ba1cfa3ae88f0f1bae66bd633859fe6323817183632ee57b83539d9153",
    "bts/men/item_context.csv": "3b411ed6b0471316321a6b93f4f756bb25888eac6218cd71d0b603d41d85732d",
    "bts/women/item_context.csv": "a56295bad066a558eb783055afd9279f5f4e209a4776eafc22151c53f0ac89d4",
}
PARSED = "obd.1.parquet"
"""The number is the version of the parsed form."""


def read_archive(archive: pathlib.Path) -> dict[str, bytes]:
    """The files in the archive that are used, checked against their sha256.

    Raises:
        DataError: the archive is damaged or holds other files.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as packed:
            for name in SHA256:
                member = packed.extractfile(FOLDER + name)
                files[name] = b"" if member is None else member.read()
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise packages.damaged(ARCHIVE, archive, error) from error
    packages.check(ARCHIVE, archive, files, SHA256)
    return files


def parse(files: dict[str, bytes]) -> pl.DataFrame:
    """All campaigns and policies in order of time, with the columns of a log (`thousandfold.bench.logs`).

    `item.affinity` is how often the user's kind clicked the shown item before, `item.price` is standardised by the shop,
    `context.propensity` is the chance that the policy showed the item.

    Raises:
        DataError: counts are not those of the data set.
    """
    table = pl.concat([_part(files, policy, campaign) for policy in POLICIES for campaign in CAMPAIGNS])
    found = (table.height, int(table["click"].sum()))
    if found != (ROWS, CLICKS):
        raise packages.DataError(
            f"{found} rows and clicks; expected {(ROWS, CLICKS)}; this release reads {ARCHIVE.requirement} only"
        )
    return table.sort("time", "request", maintain_order=True)


def _part(files: dict[str, bytes], policy: str, campaign: str) -> pl.DataFrame:
    rows = pl.read_csv(files[f"{policy}/{campaign}/{campaign}.csv"])
    # The kinds are hashed anew for each policy: those of one serve both.
    items = pl.read_csv(files[f"bts/{campaign}/item_context.csv"]).select(
        "item_id",
        pl.col("item_feature_0").cast(pl.Float32).alias("item.price"),
        *(pl.col(f"item_feature_{k}").alias(f"item.kind_{k}") for k in (1, 2, 3)),
    )
    features = [f"user_feature_{k}" for k in range(4)]
    affinity = rows.select(pl.selectors.starts_with("user-item_affinity_")).to_numpy()
    shown = affinity[range(rows.height), rows["item_id"].to_numpy()]
    return (
        rows.with_columns(pl.Series("affinity", shown, pl.Float32))
        .join(items, on="item_id", how="left", maintain_order="left")
        .select(
            pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="ms").alias("time"),
            pl.concat_str(*features, separator="-").alias("user"),
            pl.concat_str(pl.lit(f"{campaign}-"), pl.col("item_id")).alias("item"),
            pl.lit(campaign).alias("scenario"),
            pl.concat_str(pl.lit(f"{policy}-{campaign}-"), pl.col("")).alias("request"),
            "click",
            "position",
            *(pl.col(name).alias(name.replace("_", ".", 1)) for name in features),
            *(f"item.kind_{k}" for k in (1, 2, 3)),
            "item.price",
            pl.col("affinity").alias("item.affinity"),
            pl.lit(policy).alias("context.policy"),
            pl.col("propensity_score").cast(pl.Float32).alias("context.propensity"),
        )
    )


def load(directory: pathlib.Path | None = None, say: packages.Say = print) -> pathlib.Path:
    """The Parquet file of the log in the cache directory, made from the archive, which is fetched when it is not there.

    Raises:
        DataError: the download failed or is damaged.
    """
    folder = directory or packages.cache_directory()
    parsed = folder / PARSED
    if parsed.exists():
        return parsed
    archive = folder / ARCHIVE.file
    table = parse(read_archive(archive if archive.exists() else packages.download(ARCHIVE, folder, say)))
    temporary = parsed.with_name(f"{parsed.name}.{os.getpid()}")
    table.write_parquet(temporary)
    temporary.replace(parsed)
    say(f"Open Bandit Data: {ROWS:,} impressions, {CLICKS} clicks, {len(CAMPAIGNS)} campaigns, verified and kept in {folder}")
    return parsed
