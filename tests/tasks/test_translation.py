"""Number words against a reader of them, texts from files, and what batches hold."""

import gzip
import os
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from replib import files
from replib.tasks import number_words
from replib.tasks.text_files import END, PAD, START, content_of, load_pairs
from replib.tasks.translation import NumberWords, ParallelText

# Number words


def value_of_german(word):
    """The number of a German word, by taking it apart from the left."""
    units = re.findall(
        r"\w+", "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf"
    )
    known = {name: i for i, name in enumerate(units)} | {"ein": 1, "": 0}
    known |= {
        f"{stem}zehn": 10 + i
        for i, stem in enumerate(["drei", "vier", "fünf", "sech", "sieb", "acht", "neun"], start=3)
    }
    tens = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
    for factor, name in ((1000, "tausend"), (100, "hundert")):
        if name in word:
            many, _, rest = word.partition(name)
            return value_of_german(many) * factor + value_of_german(rest)
    for i, ten in enumerate(tens, start=2):
        if word.endswith(ten):
            unit = word.removesuffix(ten)
            assert unit == "" or unit.endswith("und")
            return 10 * i + known[unit.removesuffix("und")]
    return known[word]


def value_of_english(text):
    words = {w: i for i, w in enumerate(number_words.ENGLISH)}
    words |= {w: 10 * i for i, w in enumerate(number_words.ENGLISH_TENS, start=2)}
    total = current = 0
    for word in text.replace("-", " ").replace(" and", "").split():
        if word == "hundred":
            current *= 100
        elif word == "thousand":
            total, current = current * 1000, 0
        else:
            current += words[word]
    return total + current


def test_numbers_are_read_back_from_their_words():
    for n in [*range(2000), *range(2000, 1_000_000, 997), 999_999]:
        german = "".join(number_words.german_pieces(n)).strip()
        assert value_of_german(german) == n == value_of_english(number_words.english_number(n))
        assert german.endswith("eins") == (n % 100 == 1)


@pytest.mark.parametrize(
    "typed, english, german",
    [
        (
            "4,321",
            "four thousand three hundred and twenty-one",
            "viertausenddreihunderteinundzwanzig",
        ),
        ("0", "zero", "null"),
        ("16", "sixteen", "sechzehn"),
        ("77", "seventy-seven", "siebenundsiebzig"),
        ("101.017", "one hundred and one thousand and seventeen", "einhunderteintausendsiebzehn"),
        (
            "the 3rd of May 1987",
            "the third of May nineteen eighty-seven",
            "der dritte Mai neunzehnhundertsiebenundachtzig",
        ),
        ("March 1, 2001", "March the first two thousand and one", "der erste März zweitausendeins"),
        (
            "21 Dec 2015",
            "the twenty-first of December twenty fifteen",
            "der einundzwanzigste Dezember zweitausendfünfzehn",
        ),
        (
            "30 june 1900",
            "the thirtieth of June nineteen hundred",
            "der dreißigste Juni neunzehnhundert",
        ),
    ],
)
def test_what_a_reader_types_has_its_words(typed, english, german):
    text, pieces = number_words.words_of(typed)
    assert (text, "".join(pieces).strip()) == (english, german)


@pytest.mark.parametrize(
    "typed, message",
    [
        ("1,000,000", "use 0 to 999,999"),
        ("hello", "type a number such as"),
        ("the 31st of April 1999", "there is none"),
        ("May 3, 1066", "use 1100 to 2099"),
        ("-4", "type a number such as"),
    ],
)
def test_what_is_no_number_or_date_is_refused_with_an_example(typed, message):
    with pytest.raises(ValueError, match=message):
        number_words.words_of(typed)


def drawn(task=None, n=400, seed=0):
    return (task or NumberWords()).sample(n, torch.Generator().manual_seed(seed))


def test_a_batch_is_a_source_with_an_end_and_a_target_shifted_by_one():
    task = NumberWords()
    batch = drawn(task, 50)
    source, given, mask = batch.inputs
    assert torch.equal(mask, source == PAD) and torch.equal(batch.in_loss, batch.targets != PAD)
    for row, first, target in zip(source, given, batch.targets, strict=True):
        words = [i for i in row.tolist() if i != PAD]
        assert words[-1] == END and END not in words[:-1]
        expected = [i for i in target.tolist() if i != PAD]
        assert expected[-1] == END and first[0] == START
        assert first[1 : len(expected)].tolist() == expected[:-1]


def test_a_target_is_the_translation_of_its_source():
    task = NumberWords(dates=False)
    batch = drawn(task)
    for row, target in zip(batch.inputs[0].tolist(), batch.targets.tolist(), strict=True):
        english = " ".join(x for x in task.pieces(row) if x not in ("", "</s>"))
        assert value_of_english(english) == value_of_german(task.decode(target))


def test_the_words_of_a_text_are_the_tokens_of_its_source():
    task = NumberWords()
    texts, references = task.test_texts()
    batch = next(task.test_batches(1000, torch.device("cpu")))
    source, _ = task.source(task.encode(texts), "cpu")
    assert torch.equal(source, batch.inputs[0])
    assert [task.decode(row) for row in batch.targets.tolist()] == list(references)


def test_what_is_tested_is_never_drawn_and_what_is_drawn_covers_it():
    task = NumberWords()
    tested = set(task.test_texts()[0])
    seen, digits = set(), Counter()
    for seed in range(10):
        batch = drawn(task, 2000, seed)
        for row in batch.targets.tolist():
            text = task.decode(row)
            seen.add(text)
            if "der " not in text:
                digits[len(str(value_of_german(text)))] += 1
    references = set(task.test_texts()[1])
    assert len(tested) > 700 and not references & seen
    assert set(digits) == set(range(1, 7))
    assert max(digits.values()) < 1.3 * min(digits.values())
    pieces = {i for row in task.test_batches(1000, "cpu") for i in row.targets.unique().tolist()}
    assert pieces <= set(
        torch.cat([drawn(task, 2000, s).targets.unique() for s in (0, 1)]).tolist()
    )


def test_the_same_seed_draws_the_same_and_another_another():
    one, again, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    assert torch.equal(one.targets, again.targets)
    assert one.targets.shape != other.targets.shape or not torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("n", [99, 10**6])
def test_numbers_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"largest {n}: use 100 to 999,999"):
        NumberWords(largest=n)


# Texts from files

EN = ["the dog runs", "a cat sleeps on the red sofa", "two men walk", "a child plays"] * 8
DE = [
    "der Hund rennt",
    "eine Katze schläft auf dem roten Sofa",
    "zwei Männer gehen",
    "ein Kind spielt",
] * 8


def write(folder, name, lines, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode(encoding)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    folder = tmp_path / "texts" / "tiny"
    for split in ("train", "val", "test_2016"):
        write(folder, f"{split}.en.gz", EN)
        write(folder, f"{split}.de", DE)
    monkeypatch.setenv("REPLIB_TEXTS", str(tmp_path / "texts"))
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "cache"))
    return folder


def test_pairs_are_read_from_plain_and_packed_files_and_from_a_table(texts):
    expected = tuple(EN), tuple(DE)
    assert load_pairs(texts, "train", "en", "de") == expected
    assert load_pairs(texts, "test", "en", "de") == expected
    rows = [f'"{a}","{b}"' for a, b in zip(EN, DE, strict=True)]
    write(texts, "newstest2014.csv", ["en,de", *rows])
    (texts / "test_2016.de").unlink()
    assert load_pairs(texts, "test", "en", "de") == expected


@pytest.mark.parametrize(
    "lines, encoding, message",
    [
        (DE[:-1], "utf-8", "has 32 lines and .* 31: they must be translations"),
        ([*DE[:-2], "", ""], "utf-8", r"has 2 empty lines \(31, 32\): remove them"),
        (DE, "latin1", "line 2 of .*train.de is not UTF-8: convert it"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_remedy(texts, lines, encoding, message):
    write(texts, "train.de", lines, encoding)
    with pytest.raises(ValueError, match=message):
        load_pairs(texts, "train", "en", "de")


def test_files_that_are_missing_are_named(texts, monkeypatch):
    (texts / "train.de").unlink()
    with pytest.raises(ValueError, match="has no train.de, plain or .gz: put it there"):
        load_pairs(texts, "train", "en", "de")
    assert "there is no folder" in ParallelText(corpus="other").missing_data()
    monkeypatch.delenv("REPLIB_TEXTS")
    needed = "set REPLIB_TEXTS to a folder that has multi30k with train.en"
    assert needed in ParallelText().missing_data()


def tiny(**changes):
    pytest.importorskip("sentencepiece")
    return ParallelText(**{"corpus": "tiny", "vocab_size": 60, "max_len": 40} | changes)


def test_a_vocabulary_that_the_text_does_not_allow_is_refused(texts):
    assert "use a smaller vocab_size" in tiny(vocab_size=5000).missing_data()


@pytest.mark.parametrize(
    "subwords, joint, size", [("bpe", True, 60), ("bpe", False, 100), ("unigram", True, 48)]
)
def test_texts_are_given_back_to_the_letter(texts, joint, subwords, size):
    task = tiny(joint=joint, subwords=subwords, vocab_size=size)
    batch = next(task.test_batches(len(DE), "cpu"))
    assert [task.decode(row) for row in batch.targets.tolist()] == DE
    assert max(batch.targets.max(), batch.inputs[0].max()) < task.vocab_size
    if not joint:  # no id of one language is one of the other's
        of_source = set(batch.inputs[0].unique().tolist()) - {PAD, END}
        assert not of_source & (set(batch.targets.unique().tolist()) - {PAD, END})


def test_a_vocabulary_is_trained_once_and_always_the_same(texts):
    task = tiny()
    kept = list((files.cache_folder() / "subwords").glob("*"))
    first = task.text.of_target.model
    (path,) = (files.cache_folder() / "subwords").glob("*")
    assert not kept or kept == [path]
    assert path.read_bytes() == first
    path.unlink()
    write(texts, "val.en", EN)  # read anew
    assert replace(task, max_len=39).text.of_target.model == first


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(texts):
    task = tiny()
    train, n = task.text.train, len(task.text.train.batches(6, 0, 0))
    for epoch in (0, 1):
        rows = [i for batch in train.batches(6, 0, epoch) for i in batch.tolist()]
        assert sorted(rows) == list(range(len(train)))
        assert len(train.batches(6, 0, epoch)) == n
    orders = [[b.tolist() for b in train.batches(6, *of)] for of in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    first, again = (task.batch_at(n + 1, 6, 0, "cpu") for _ in range(2))
    assert torch.equal(first.targets, again.targets)


def test_a_batch_has_no_more_tokens_than_sentences_of_mean_length(texts):
    task = tiny()
    train = task.text.train
    longer = torch.tensor(
        [max(len(train.source[i]), len(train.target[i])) + 1 for i in range(len(train))]
    ).double()
    for i in range(len(task.text.train.batches(6, 0, 0))):
        batch = task.batch_at(i, 6, 0, "cpu")
        assert max(batch.targets.numel(), batch.inputs[0].numel()) <= 6 * longer.mean()


def test_pairs_that_are_too_long_are_left_out_and_counted(texts):
    whole, short = tiny(), tiny(max_len=10)
    assert whole.text.n_too_long == 0
    assert 0 < short.text.n_too_long == len(whole.text.train) - len(short.text.train)
    with pytest.raises(ValueError, match="no pair has less than 4 tokens"):
        _ = tiny(max_len=4).text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 2}, "vocab_size 2: use 8 to"),
        ({"max_len": 3}, "max_len 3: use 4 to"),
        ({"subwords": "words"}, "use bpe, unigram"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ParallelText(**changes)


def test_words_with_a_digit_are_read_by_their_number():
    assert re.match("the first", number_words.words_of("1 May 1999")[0])


def test_a_pipe_is_no_text(texts):
    os.mkfifo(texts / "train.en")  # would be waited for
    with pytest.raises(ValueError, match="train.en cannot be read .*it is no regular file"):
        load_pairs(texts, "train", "en", "de")


def test_a_torn_file_is_said_with_the_remedy(tmp_path):
    whole = gzip.compress(b"ein Satz\n" * 100)
    path = tmp_path / "train.en.gz"
    for torn in (whole[:-9], whole[:12] + b"\xff" * 20 + whole[32:], b"no gzip"):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match="train.en.gz cannot be read .*: copy it again"):
            content_of(path)
