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
