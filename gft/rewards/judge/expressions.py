"""Expressions from tokens, by recursive descent. What has no certain meaning is unreadable."""

from __future__ import annotations

from fractions import Fraction

from .cursor import END, Cursor
from .spelling import UNIT_LETTERS, Token, Unreadable
from .values import INFINITY, PI, Expression, Op, Quantity, Sequence, Symbol, Value

DEEPEST = 40  # brackets in brackets
LARGEST_EXPONENT = 400  # of 1e400
_GREEK_NAMES = """alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau
    phi varphi chi psi omega ell Gamma Delta Theta Lambda Sigma Phi Psi Omega"""
GREEK = frozenset(_GREEK_NAMES.split())
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
FUNCTIONS |= {"ln", "log", "exp"}
CONSTANTS = {"pi": PI, "infty": INFINITY}
BEGIN_FACTORS = {"frac", "sqrt", "plain sqrt", "binom", "pi", *GREEK, *FUNCTIONS}
APPLIED = set("fghFGHPQpq")  # f(x) is no product of f and x, unless flipped; nor is y'(x)


def number_of(value: Value) -> Expression:
    """The expression that a value is.

    Raises:
        Unreadable: it is a set, has a unit, or the like, with which nothing can be computed.
    """
    if not isinstance(value, Quantity) or value.unit is not None:
        raise Unreadable(f"a number is missing where a {type(value).__name__.lower()} stands")
    return value.expression


def literal(token: Token) -> Fraction:
    exponent = token.text.lower().partition("e")[2]
    if exponent and abs(int(exponent[:9])) > LARGEST_EXPONENT:
        raise Unreadable(f"{token.text} is too large or too small")
    return Fraction(token.text)


class Expressions(Cursor):
    """Reads sums, products, powers and functions; what brackets hold is read by `reader`."""

    def __init__(self, tokens: list[Token], flips: frozenset[str]) -> None:
        super().__init__(tokens, flips)
        self.depth = self.in_functions = 0

    def bracketed(self) -> Value:
        raise NotImplementedError

    def matrix(self) -> Value:
        raise NotImplementedError

    def sum(self) -> Value:
        if self.accept("pm"):
            value: Value = Quantity(Op("±", (Fraction(0), number_of(self.product()))))
        else:
            sign = self.sign()
            value = self.product()
            if sign:
                value = Quantity(Op("*", (Fraction(sign), number_of(value))))
        while self.at("+", "-", "pm"):
            operator = self.take().text.replace("pm", "±")
            value = Quantity(Op(operator, (number_of(value), number_of(self.product()))))
        return value

    def sign(self) -> int:
        """-1 or 1 where a sign stands, else 0."""
        return -1 if self.accept("-") else int(self.accept("+"))

    def product(self) -> Value:
        value, stroke, after_function = self.power(), False, False
        after_function = self.ends_in_function
        while True:
            if self.at("/", "div"):
                if stroke or after_function:
                    raise Unreadable("it is not certain what the fraction stroke divides")
                stroke = self.take().text == "/" or stroke
                value = Quantity(Op("/", (number_of(value), self.signed_power())))
                if self.begins_factor():
                    raise Unreadable("it is not certain where the denominator ends")
            elif self.accept("*", "times", "cdot"):
                value = Quantity(Op("*", (number_of(value), self.signed_power())))
            elif self.begins_factor():
                value = Quantity(Op("*", (number_of(value), number_of(self.power()))))
            else:
                return value
            after_function = self.ends_in_function

    def signed_power(self) -> Expression:
        """A factor after an operator, where 3 \\cdot -2 is allowed."""
        sign = self.sign()
        factor = number_of(self.power())
        return Op("*", (Fraction(sign), factor)) if sign else factor

    def begins_factor(self) -> bool:
        """Whether a factor follows without an operator: 2x, 3(4), x sin y."""
        if self.next.kind == "number":
            raise Unreadable(f"the number {self.next.text} stands beside another factor")
        if self.next.kind == "letters":
            return not self.is_unit_letter()
        return (self.next.kind == "command" and self.next.text in BEGIN_FACTORS) or self.at("(")

    def is_unit_letter(self) -> bool:
        """Whether the last letter of 5 m is taken for metres: only if flipped."""
        last = self.position == len(self.tokens) - 1 and self.position > 0
        raised = self.peek(-2).text in ("^", "_")  # r^2 h
        after_number = last and self.peek(-1).kind == "number" and not raised
        return "unit letter" in self.flips and after_number and self.next.text in UNIT_LETTERS

    def power(self) -> Value:
        self.ends_in_function = False
        value = self.primary()
        while True:
            if self.accept("!"):
                value = Quantity(Op("factorial", (number_of(value),)))
            elif self.accept("^"):
                value = Quantity(Op("^", (number_of(value), self.exponent())))
            elif self.in_functions and self.next[:2] == ("word", "degree"):
                self.take()
                value = Quantity(Op("*", (number_of(value), Op("/", (PI, Fraction(180))))))
            else:
                return value

    def exponent(self) -> Expression:
        self.enter()
        sign = self.sign()
        base = number_of(self.primary())
        if self.accept("^"):  # from the right: 2^3^2 is 2^9
            base = Op("^", (base, self.exponent()))
        self.depth -= 1
        return Op("*", (Fraction(sign), base)) if sign else base

    def enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"its brackets are more than {DEEPEST} deep")

    def primary(self) -> Value:
        self.enter()
        token = self.next
        if token.kind == "number":
            value: Value = self.number()
        elif token.kind == "begin":
            value = self.matrix()
        elif self.at("(", "[", "{", r"\{"):
            value = self.bracketed()
        elif self.accept("|"):
            value = Quantity(Op("abs", (number_of(self.sum()),)))
            self.expect("|")
        elif token.kind == "letters" or (token.kind == "command" and token.text in GREEK):
            value = Quantity(self.symbol())
        elif token.kind == "command":
            value = self.command()
        else:
            raise Unreadable(f"{token.text} is not understood where it stands")
        self.depth -= 1
        return value

    def number(self) -> Quantity:
        r"""A number, or a mixed one: 11 5/6 and 11\frac{5}{6}."""
        token = self.take()
        if not token.text.isdigit():
            return Quantity(literal(token))
        above: Expression
        below: Expression
        start = self.position
        if self.accept("frac"):
            above, below = self.two_arguments()
            if not (isinstance(above, Fraction) and isinstance(below, Fraction)):  # 2\frac{x}{3}
                self.position = start
                return Quantity(literal(token))
        elif self.next.kind == "number" and self.next.spaced:
            above = literal(self.take())
            self.expect("/")
            below = number_of(self.primary())
        else:
            return Quantity(literal(token))
        proper = isinstance(above, Fraction) and isinstance(below, Fraction) and 0 < above < below
        if not proper or (above * below).denominator != 1:  # type: ignore[operator]
            raise Unreadable("it is not certain whether it is a mixed number or a product")
        if self.at("^", "!", "/") or self.begins_factor():
            raise Unreadable("something follows a mixed number")
        return Quantity(literal(token) + above / below)  # type: ignore[operator]

    def symbol(self) -> Expression:
        """A letter with its primes and its subscript, or a function of it: f'(x)."""
        name = self.take().text
        while True:
            if self.accept("'") or (self.at("^") and self.peek(1).text == "prime" and self.take() and self.take()):
                name += "'"
            elif self.at("^") and self.peek(1).text == "{" and self.peek(2).text == "prime":
                self.position += 2
                while self.accept("prime"):
                    name += "'"
                self.expect("}")
            elif self.accept("_"):
                name += f"_{self.subscript()}"
            else:
                break
        applied = ("'" in name or name[0] in APPLIED) and "application" not in self.flips
        if not (applied and self.at("(")):
            return Symbol(name)
        self.take()
        arguments = [number_of(self.sum())]
        while self.accept(","):
            arguments.append(number_of(self.sum()))
        self.expect(")")
        return Op(f"apply {name}", tuple(arguments))

    def subscript(self) -> str:
        """x_1 and x_{1} are the same, x_{n+1} is another."""
        if not self.accept("{"):
            return self.take().text
        parts = []
        while not self.accept("}"):
            if self.next is END or self.at("{"):
                raise Unreadable("its subscript is not understood")
            parts.append(self.take().text)
        return "".join(parts)

    def command(self) -> Value:
        name = self.take().text
        if name in CONSTANTS:
            return Quantity(CONSTANTS[name])
        if name in FUNCTIONS:
            return Quantity(self.function(name))
        if name in ("frac", "binom"):
            return Quantity(Op({"frac": "/"}.get(name, name), self.two_arguments()))
        if name == "emptyset":
            return Sequence("{}", ())
        if name == "plain sqrt":
            return Quantity(Op("root", (number_of(self.primary()), Fraction(2))))
        if name == "sqrt":
            degree: Expression = Fraction(2)
            if self.accept("["):
                degree = number_of(self.sum())
                self.expect("]")
            return Quantity(Op("root", (self.argument(), degree)))
        raise Unreadable(f"\\{name} is not understood")

    def function(self, name: str) -> Expression:
        base = self.argument() if name == "log" and self.accept("_") else None
        exponent = self.exponent() if self.accept("^") else None
        if exponent is not None and not (isinstance(exponent, Fraction) and exponent > 0):
            raise Unreadable(rf"\{name}^{{-1}} may be an inverse or a reciprocal")
        self.in_functions += 1
        if self.at("("):
            inside = number_of(self.bracketed())
            if self.at("^"):
                raise Unreadable(f"it is not certain what the exponent after \\{name}(...) belongs to")
        else:
            inside = number_of(self.power())
            while not (self.next.kind == "command" and self.next.text in FUNCTIONS) and self.begins_factor():
                inside = Op("*", (inside, number_of(self.power())))
            self.ends_in_function = True
        self.in_functions -= 1
        call = Op(name, (inside,) if base is None else (inside, base))
        return call if exponent is None else Op("^", (call, exponent))

    def two_arguments(self) -> tuple[Expression, Expression]:
        r"""Those of \frac: in braces, or \frac12."""
        if self.next.kind == "number" and len(self.next.text) == 2 and self.next.text.isdigit():
            above, below = map(Fraction, self.take().text)
            return above, below
        return self.argument(), self.argument()

    def argument(self) -> Expression:
        """In braces, or one digit or letter: TeX takes no more of 12 than the 1."""
        if self.at("{"):
            return number_of(self.bracketed())
        if self.next.kind == "number" and len(self.next.text) > 1:
            raise Unreadable(f"only the first digit of {self.next.text} would be the argument of the command before it")
        if self.next.kind == "letters":
            return Symbol(self.take().text)
        if self.next.kind == "number":  # \log_2 8 is no mixed number
            return literal(self.take())
        if self.next.kind == "command":
            return number_of(self.primary())
        raise Unreadable(f"an argument is missing before {self.next.text}")
