# ruff: noqa: INP001 a script on its own
"""Write a search log and its actions as Parquet, in the columns that `thousandfold bench quality --data` reads.

    python examples/search_log.py search.parquet actions.parquet --rows 200000
    thousandfold bench quality --data search.parquet --actions actions.parquet --spec examples/search_log.toml --lag 10m

The traffic is simulated (thousandfold.data.simulator), with lists of 25; replace this file by a query to your own log.
"""

import argparse
import pathlib

import numpy as np
import polars as pl

from thousandfold.data import blocks, simulator

PAGE = 25


def tables(rows: int, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The log (one row per item shown) and the actions (clicks and saves of the log, views, searches without an item)."""
    scenarios = tuple(simulator.Scenario(s.name, s.share, s.bias, PAGE) for s in simulator.Settings().scenarios)
    made = simulator.Simulator(simulator.Settings(scenarios=scenarios, duplicate_share=0, lists_per_s=0.5), seed)
    users, items = made.world.users, made.world.items
    shown, done, held = [], [], 0
    for block in made.events():
        of = np.repeat(np.arange(len(block.user)), np.diff(block.start))
        user, item = block.user[of].tolist(), block.item.tolist()
        shown.append(
            pl.DataFrame(
                {
                    "time": block.ts_ms[of],
                    "request": [f"r{block.first + i}" for i in of.tolist()],
                    "user": [users.ids[u] for u in user],
                    "item": [items.ids[i] for i in item],
                    "scenario": [made.world.scenarios[s] for s in block.scenario[of].tolist()],
                    "click": blocks.labels(block, simulator.KINDS.index("click")).astype(np.int8),
                    "save": blocks.labels(block, simulator.KINDS.index("save")).astype(np.int8),
                    "user.country": [users.attributes["country"][u] for u in user],
                    "user.segment": [users.attributes["segment"][u] for u in user],
                    "category": [items.attributes["category"][i] for i in item],
                    "tags": [items.attributes["tags"][i] for i in item],
                    "price": [items.attributes["price"][i] for i in item],
                }
            )
        )
        done.append(
            pl.DataFrame(
                {
                    "time": block.ts_ms[block.a_list] + block.a_delay_ms,
                    "user": [users.ids[u] for u in block.user[block.a_list].tolist()],
                    "item": [items.ids[i] if i >= 0 else None for i in block.a_item.tolist()],
                    "kind": [simulator.KINDS[k] for k in block.a_kind.tolist()],
                },
                schema_overrides={"item": pl.String},
            )
        )
        held += len(item)
        if held >= rows:
            break
    stamp = pl.from_epoch("time", time_unit="ms")
    return pl.concat(shown).with_columns(stamp), pl.concat(done).with_columns(stamp).sort("time")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=pathlib.Path)
    parser.add_argument("actions", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    log, actions = tables(given.rows, given.seed)
    log.write_parquet(given.log)
    actions.write_parquet(given.actions)
    print(f"{log.height:,} rows in {given.log}, {actions.height:,} actions in {given.actions}")


if __name__ == "__main__":
    main()
