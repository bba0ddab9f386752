"""The words of the embedded arithmetic problems: names, things, and stories by the equation that solves each."""

from collections.abc import Mapping
from types import MappingProxyType

NAMES: tuple[tuple[str, str], ...] = (
    ("Amira", "she"), ("Bruno", "he"), ("Carla", "she"), ("Deniz", "he"), ("Elif", "she"), ("Farid", "he"),
    ("Greta", "she"), ("Hugo", "he"), ("Ines", "she"), ("Jonas", "he"), ("Kira", "she"), ("Luca", "he"),
    ("Mina", "she"), ("Noah", "he"), ("Olga", "she"), ("Pavel", "he"), ("Rosa", "she"), ("Samuel", "he"),
    ("Tara", "she"), ("Umberto", "he"), ("Vera", "she"), ("Walter", "he"), ("Yuki", "she"), ("Zoran", "he"),
)  # fmt: skip

THINGS: tuple[str, ...] = (
    "marbles", "stickers", "pencils", "buttons", "shells", "postcards", "beads", "coins", "erasers", "ribbons",
    "stones", "candles", "balloons", "tickets", "crayons", "stamps", "toy cars", "notebooks", "magnets", "badges",
)  # fmt: skip

# By the equation that solves them: a, b, c whole numbers, x, y decimals, z a number the equation does not need.
STORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "{a}+{b}": (
            "{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have now?",
            "There are {a} {things} in the drawer and {b} {things} on the shelf. How many {things} are there in all?",
            "After giving away {b} {things}, {name} had {a} {things} left. How many {things} did {he} have at first?",
            "{name} counted {a} birds in the morning and {b} birds in the evening. How many birds did {he} count?",
            "{other} owns {a} {things}. {name} owns {b} {things} more than {other}. How many {things} does {name} own?",
            "{name} is {z} years old. {He} has {a} {things} in a box and {b} in a bag. How many {things} is that?",
        ),
        "{a}-{b}": (
            "{name} had {a} {things} and lost {b} of them on the way home. How many {things} are left?",
            "A bakery made {a} rolls today and sold {b}. How many rolls were not sold?",
            "{name} wants to read {a} pages this week and has read {b}. How many pages are still to read?",
            "{name} collected {a} {things} and {other} collected {b}. How many more {things} does {name} have?",
            "A school choir has {a} singers. {b} of them are girls. How many are boys?",
            "{name} has {b} {things}. How many more does {he} need to have {a} {things}?",
            "{name} had {a} {things} and {z} {others}. {He} gave {b} {things} to {other}. How many {things} are left?",
        ),
        "{a}*{b}": (
            "Each of {a} boxes holds {b} {things}. How many {things} are in the boxes?",
            "{name} swims {b} laps every day. How many laps does {he} swim in {a} days?",
            "A garden has {a} rows with {b} cabbages in each row. How many cabbages grow in the garden?",
            "{name} buys {a} bags of {things} at {b} dollars a bag. How many dollars does {he} pay?",
            "{other} baked {b} cakes. {name} baked {a} times as many. How many cakes did {name} bake?",
            "A shop with {z} shelves sold {a} crates of {b} bottles. How many bottles did it sell?",
        ),
        "{a}/{b}": (
            "{name} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
            "A coach puts {a} children into teams of {b}. How many teams are there?",
            "{a} chairs stand in {b} equal rows. How many chairs are in one row?",
            "{name} earned {a} dollars in {b} hours. How many dollars did {he} earn in one hour?",
            "A ribbon of {a} inches is cut into pieces of {b} inches. How many pieces are there?",
            "{name} has {a} {things} and {z} {others}. {He} makes {b} equal piles of {things}. How many are in a pile?",
        ),
        "{x}+{y}": (
            "{name} paid {x} dollars for a book and {y} dollars for a lamp. How much did {he} pay in total?",
            "{name} walked {x} miles before lunch and {y} miles after lunch. How many miles did {he} walk?",
        ),
        "{x}-{y}": (
            "A rope is {x} meters long. {name} cuts off {y} meters. How many meters remain?",
            "{name} had {x} dollars and spent {y} dollars at the market. How much money is left?",
        ),
        "{a}*{x}": (
            "One bag of rice weighs {x} pounds. How many pounds do {a} bags weigh?",
            "A ticket to the museum costs {x} dollars. How much do {a} tickets cost?",
        ),
        "{a}+{b}+{c}": (
            "{name} picked {a} apples, {b} pears and {c} plums. How many pieces of fruit did {he} pick?",
            "A bus carried {a} people on Monday, {b} on Tuesday and {c} on Friday. How many people is that altogether?",
        ),
        "{a}+{b}-{c}": (
            "{name} had {a} {things}, bought {b} more and gave {c} to {other}. How many {things} does {name} have now?",
            "There were {a} passengers on a train. {b} got on and {c} got off. How many passengers are on the train?",
        ),
        "({a}-{b})/{c}": (
            "{name} had {a} {things}, kept {b} and put the rest into {c} equal bags. How many {things} are in a bag?",
            "A waiter has {a} guests. {b} leave, and the others sit {c} at a table. How many tables are taken?",
            "{name} saved {a} dollars and spent {b}. How many toys at {c} dollars each can {he} buy with the rest?",
        ),
        "({a}+{b})/{c}": (
            "{name} has {a} red and {b} blue {things}. {He} puts {c} into every box. How many boxes does {he} fill?",
            "{a} boys and {b} girls go on a trip in vans of {c} seats. How many vans do they need?",
        ),
        "({a}+{b})*{c}": (
            "Each of {c} gift bags holds {a} {things} and {b} {others}. How many items are in the gift bags?",
            "{name} rode the swing {a} times and the train {b} times, for {c} tickets a ride. How many did {he} use?",
        ),
        "({a}-{b})*{c}": (
            "Of {a} {things}, {b} were broken. {name} sold the others for {c} dollars each. How much did {he} get?",
            "{a} workers were hired, but {b} did not come. The others planted {c} trees each. How many trees is that?",
        ),
        "{a}*{b}+{c}": (
            "{name} bought {a} packs of {b} {things} and found {c} more at home. How many {things} is that?",
            "A hall has {a} rows of {b} seats and {c} seats on the balcony. How many seats does it have?",
        ),
        "{a}*{b}-{c}": (
            "{name} filled {a} jars with {b} cookies each. The children ate {c} cookies. How many cookies are left?",
            "{name} worked {a} hours for {b} dollars an hour and then spent {c} dollars. How many dollars are left?",
        ),
    }
)
