"""Worlds of known truth for `thousandfold bench models`: what scenarios share, what they own, and where they disagree."""

import msgspec

from thousandfold.data import simulator

SEESAW = simulator.Settings(
    scenarios=(
        simulator.Scenario("large", 0.80, 0.0, 12.0),
        simulator.Scenario("middle", 0.12, -0.4, 12.0),
        simulator.Scenario("small", 0.02, 0.3, 12.0),
        simulator.Scenario("contrary", 0.06, 0.0, 12.0, shared=-1.0, own=2.0),
    ),
    users=1_500,
    items=800,
    item_spread=0.9,
    user_spread=0.6,
    taste_spread=0.9,
    scenario_spread=0.4,
    position_bias=0.6,
    base=-1.2,
    drift_spread=0.4,
    delay_median_s=0.0,
    delay_p90_s=0.0,
)
"""Known truth for `bench models`: scenarios of unequal size share what visitors like; those of `contrary` like the reverse."""

SEESAW7 = msgspec.structs.replace(
    SEESAW,
    actions=(
        simulator.Action("effective_view", -0.6, 0.8, 0.5),
        simulator.Action("like", -2.4, 1.2, 0.6),
        simulator.Action("collect", -2.9, 1.0, 0.9),
        simulator.Action("forward", -3.6, 0.6, 1.2),
        simulator.Action("follow", -4.2, 0.3, 1.2),
        simulator.Action("hate", -4.8, -1.0, 0.8),
    ),
)
"""Known truth with the seven objectives of PEPNet (Chang et al. 2023): beside clicks six that agree with them less and less, down
to `hate`, which happens where clicks do not; each has a taste of its own. In `contrary` what agrees is turned round."""

PLANTED = simulator.Settings(
    scenarios=(simulator.Scenario("all", 1.0, 0.0, 1.0),),
    users=1,
    items=300,
    new_user_share=1.0,
    new_items_per_hour=0.0,
    lists_per_s=5.0,
    session_median=20.0,
    session_p95=60.0,
    repeat_share=0.0,
    base=-0.6,
    position_bias=0.0,
    item_spread=0.5,
    user_spread=1.2,
    taste_spread=0.6,
    scenario_spread=0.0,
    drift_spread=0.0,
    delay_median_s=0.0,
    delay_p90_s=0.0,
)
"""Known truth for `bench meta`: every session is a user never seen before, more or less willing than others and with a taste. So
ids say nothing of users, and what is known of one is in the support set alone."""

UNPLANTED = msgspec.structs.replace(PLANTED, user_spread=0.0, taste_spread=0.0)
"""The same without anything that belongs to a user: there is nothing to adapt to."""
