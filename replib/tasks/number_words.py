"""Numbers and dates in English and in German words.

A German number is one word whose units stand before the tens (23 is "dreiundzwanzig"), so that
translating one reorders it. Words of German are made of pieces; one that begins a word has a space
before it.
"""

import re
from functools import cache

LARGEST = 999_999
FIRST_YEAR, LAST_YEAR = 1100, 2099


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
ENGLISH_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
ENGLISH_ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
ENGLISH_MONTHS = _words(
    "January February March April May June July August September October November December"
)
GERMAN = _words(
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
)
GERMAN_TENS = _words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
GERMAN_ORDINALS = _words(
    "erste zweite dritte vierte fünfte sechste siebte achte neunte zehnte elfte zwölfte "
    "dreizehnte vierzehnte fünfzehnte sechzehnte siebzehnte achtzehnte neunzehnte"
)
GERMAN_MONTHS = _words(
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
)
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

Date = tuple[int, int, int]
"""Day, month and year."""


def english_number(n: int) -> str:
    """Such as "four thousand three hundred and twenty-one".

    Raises:
        ValueError: n is not of 0 to LARGEST.
    """
    _check(n)
    return " ".join(_english(n)) if n else ENGLISH[0]


@cache
def _english(n: int) -> tuple[str, ...]:
    if n >= 1000:
        rest = n % 1000
        joined = ("and",) if 0 < rest < 100 else ()
        return (*_english(n // 1000), "thousand", *joined, *_english(rest))
    if n >= 100:
        joined = ("and",) if n % 100 else ()
        return (ENGLISH[n // 100], "hundred", *joined, *_english(n % 100))
    if n >= 20:
        tens = ENGLISH_TENS[n // 10 - 2]
        return (f"{tens}-{ENGLISH[n % 10]}",) if n % 10 else (tens,)
    return (ENGLISH[n],) if n else ()


def german_pieces(n: int) -> tuple[str, ...]:
    """Of a number, such as " vier", "tausend", "drei", "hundert", "ein", "und", "zwanzig".

    Raises:
        ValueError: n is not of 0 to LARGEST.
    """
    _check(n)
    return _one_word((*_german(n), *("s",) * (n % 100 == 1)) if n else (GERMAN[0],))


@cache
def _german(n: int) -> tuple[str, ...]:
    """Without the s of one that ends in "eins"."""
    if n >= 1000:
        return (*_german(n // 1000), "tausend", *_german(n % 1000))
    if n >= 100:
        return (GERMAN[n // 100], "hundert", *_german(n % 100))
    if n >= 20:
        unit = (GERMAN[n % 10], "und") if n % 10 else ()
        return (*unit, GERMAN_TENS[n // 10 - 2])
    return (GERMAN[n],) if n else ()


def english_date(date: Date, *, month_first: bool = False) -> str:
    """Such as "the third of May nineteen eighty-seven", or "May the third nineteen eighty-seven".

    Raises:
        ValueError: there is no such date.
    """
    day, month, year = _checked(date)
    if day <= 20:
        ordinal = ENGLISH_ORDINALS[day - 1]
    else:
        tens = ENGLISH_TENS[day // 10 - 2]
        unit = ENGLISH_ORDINALS[day % 10 - 1] if day % 10 else ""
        ordinal = f"{tens}-{unit}" if unit else "thirtieth"
    name = ENGLISH_MONTHS[month - 1]
    said = f"{name} the {ordinal}" if month_first else f"the {ordinal} of {name}"
    return f"{said} {_english_year(year)}"


def _english_year(year: int) -> str:
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return english_number(year)
    if rest == 0:
        return f"{english_number(century)} hundred"
    return f"{english_number(century)} {'oh ' * (rest < 10)}{english_number(rest)}"


def german_date_pieces(date: Date) -> tuple[str, ...]:
    """Such as those of "der dritte Mai neunzehnhundertsiebenundachtzig".

    Raises:
        ValueError: there is no such date.
    """
    day, month, year = _checked(date)
    ordinal = (GERMAN_ORDINALS[day - 1],) if day < 20 else (*_german(day), "ste")
    century, rest = divmod(year, 100)
    spoken = _german(year) if year >= 2000 else (*_german(century), "hundert", *_german(rest))
    spoken += ("s",) * (rest == 1)
    name = f" {GERMAN_MONTHS[month - 1]}"
    return (" der", *_one_word(ordinal), name, *_one_word(spoken))


def _one_word(pieces: tuple[str, ...]) -> tuple[str, ...]:
    return (f" {pieces[0]}", *pieces[1:])


def _check(n: int) -> None:
    if not 0 <= n <= LARGEST:
        raise ValueError(f"the number {n}: use 0 to {LARGEST:,}")


def _checked(date: Date) -> Date:
    day, month, year = date
    if not (1 <= month <= 12 and 1 <= day <= DAYS[month - 1]):
        raise ValueError(f"day {day} of month {month}: there is none (29 February is left out)")
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ValueError(f"the year {year}: use {FIRST_YEAR} to {LAST_YEAR}")
    return date


def words_of(typed: str) -> tuple[str, tuple[str, ...]]:
    """The English words of what a reader typed, and the pieces of the German ones: a number such as
    "4,321", or a date such as "the 3rd of May 1987" or "May 3, 1987".

    Raises:
        ValueError: it is neither, or out of range; the message has an example.
    """
    text = typed.strip()
    if re.fullmatch(r"\d{1,3}([ ,.']?\d{3})*|\d+", text):
        n = int(re.sub(r"\D", "", text))
        return english_number(n), german_pieces(n)
    names = {name[:3].lower(): i + 1 for i, name in enumerate(ENGLISH_MONTHS)}
    month = re.search(r"[A-Za-z]{3,}", re.sub(r"\b(the|of)\b", "", text, flags=re.IGNORECASE))
    numbers = [int(x) for x in re.findall(r"\d+", text)]
    if month is None or month.group()[:3].lower() not in names or len(numbers) != 2:
        raise ValueError(f"{text!r}: type a number such as 4,321, or the 3rd of May 1987")
    date = (numbers[0], names[month.group()[:3].lower()], numbers[1])
    month_first = text.lower().startswith(month.group().lower())
    return english_date(date, month_first=month_first), german_date_pieces(date)


def english_words(text: str) -> list[str]:
    """The words of an English number or date, apart at hyphens too."""
    return text.replace("-", " ").split()


@cache
def english_vocabulary() -> tuple[str, ...]:
    others = ("hundred", "thousand", "and", "oh", "the", "of", "thirtieth")
    return (*ENGLISH, *ENGLISH_TENS, *others, *ENGLISH_ORDINALS, *ENGLISH_MONTHS)


@cache
def german_vocabulary() -> tuple[str, ...]:
    """Pieces, those that begin a word with a space before them."""
    numbers = (*GERMAN, *GERMAN_TENS)
    inside = (*numbers, "hundert", "tausend", "und", "s", "ste")
    first = (*numbers, *GERMAN_ORDINALS, *GERMAN_MONTHS, "der")
    return (*inside, *(f" {piece}" for piece in first))
