"""What is true in the shop: its products, orders and towns, and its SQL tables."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course.lab.shop.dice import Dice


@functools.cache
def read(name: str) -> dict:
    """One of the generator's word files, for example read("vocabulary")."""
    return tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Product:
    name: str  # "copper kettle"
    plural: str  # "copper kettles"
    noun: str
    department: str
    colors: tuple[str, ...]
    price: int  # euros
    new_price: int  # euros, after the price change
    weight: int  # grams
    stock: int
    maker: str
    town: str
    code: str  # on the shelf: "K417"
    supplier_code: str  # never to be told to a customer: "NB-4417"
    held_out: bool  # only in test splits of the tasks


@dataclass(frozen=True)
class Order:
    number: int
    customer: str
    town: str
    product: Product
    color: str
    quantity: int
    month: str


def _product(department: str, material: str, noun: str, plural: str, number: int) -> Product:
    dice, words = Dice("product", material, noun), read("vocabulary")
    price = dice.between(4, 120)
    new_price = price + dice.pick((-1, 1)) * dice.between(1, 3)
    code = f"{noun[0].upper()}{number:03d}"
    return Product(
        name=f"{material} {noun}",
        plural=f"{material} {plural}",
        noun=noun,
        department=department,
        colors=tuple(dice.sample(words["colors"], 3)),
        price=price,
        new_price=new_price,
        weight=50 * dice.between(2, 60),
        stock=dice.between(0, 90),
        maker=dice.pick(words["makers"]),
        town=dice.pick(words["towns"]),
        code=code,
        supplier_code=f"{dice.pick('ABCDEFGH')}{dice.pick('JKLMNPQR')}-{dice.between(1000, 9999)}",
        held_out=dice.chance(0.2),
    )


@functools.cache
def products() -> tuple[Product, ...]:
    """The 400 products, in the catalogue's order."""
    names = [
        (department, material, *noun.split(":"))
        for department, lists in read("vocabulary")["departments"].items()
        for noun in lists["nouns"]
        for material in lists["materials"]
    ]
    chosen = sorted(Dice("products").sample(range(len(names)), 400))
    return tuple(_product(*names[i], number) for number, i in enumerate(chosen))


@functools.cache
def garden_products() -> tuple[Product, ...]:
    """The 64 products of a department that the base models have never read about."""
    lists = read("vocabulary")["garden"]
    names = [(material, *noun.split(":")) for noun in lists["nouns"] for material in lists["materials"]]
    return tuple(_product("garden", *name, 400 + i) for i, name in enumerate(names))


def person(dice: Dice) -> str:
    words = read("vocabulary")
    return f"{dice.pick(words['first_names'])} {dice.pick(words['last_names'])}"


def address(dice: Dice) -> str:
    words = read("vocabulary")
    return f"{dice.pick(words['streets'])} {dice.between(1, 99)}, {dice.pick(words['towns'])}"


def date(dice: Dice) -> str:
    return f"{dice.pick(read('vocabulary')['months'])} {dice.between(1, 28)}"


def order(dice: Dice, number: int | None = None) -> Order:
    words, product = read("vocabulary"), dice.pick(products())
    return Order(
        number=dice.between(10000, 99999) if number is None else number,
        customer=person(dice),
        town=dice.pick(words["towns"]),
        product=product,
        color=dice.pick(product.colors),
        quantity=dice.between(1, 12),
        month=dice.pick(words["months"]),
    )


@functools.cache
def orders() -> tuple[Order, ...]:
    """The 600 orders of the SQL database."""
    numbers = Dice("order numbers").sample(range(10000, 100000), 600)
    return tuple(order(Dice("order", number), number) for number in sorted(numbers))


def sql_script() -> str:
    """The database as SQL text: it is committed as text because SQLite files differ between SQLite versions."""
    lines = [
        "CREATE TABLE products (code TEXT PRIMARY KEY, name TEXT, department TEXT, price INTEGER, "
        "stock INTEGER, weight INTEGER, maker TEXT, town TEXT);",
        "CREATE TABLE orders (number INTEGER PRIMARY KEY, customer TEXT, town TEXT, product TEXT, "
        "color TEXT, quantity INTEGER, month TEXT);",
    ]
    rows = [
        ("products", (p.code, p.name, p.department, p.price, p.stock, p.weight, p.maker, p.town)) for p in products()
    ] + [("orders", (o.number, o.customer, o.town, o.product.name, o.color, o.quantity, o.month)) for o in orders()]
    # no text of the shop holds an apostrophe, so Python's quotes are SQL's quotes
    lines += [f"INSERT INTO {table} VALUES {values!r};" for table, values in rows]
    return "\n".join(lines) + "\n"
