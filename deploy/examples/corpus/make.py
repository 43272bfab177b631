#!/usr/bin/env python3
"""Makes king-james-bible.jsonl.gz: one long document per book, 66 in all.

Needs the Debian packages bible-kjv and bible-kjv-text (`apt-get install bible-kjv`). The same packages give the same bytes.
"""
import gzip
import io
import json
import pathlib
import re
import subprocess

TITLES = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy", "Josh": "Joshua",
    "Jdgs": "Judges", "Ruth": "Ruth", "1Sm": "1 Samuel", "2Sm": "2 Samuel", "1Ki": "1 Kings", "2Ki": "2 Kings",
    "1Chr": "1 Chronicles", "2Chr": "2 Chronicles", "Ezra": "Ezra", "Neh": "Nehemiah", "Est": "Esther", "Job": "Job",
    "Psa": "Psalms", "Prv": "Proverbs", "Eccl": "Ecclesiastes", "SSol": "Song of Solomon", "Isa": "Isaiah",
    "Jer": "Jeremiah", "Lam": "Lamentations", "Eze": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea", "Joel": "Joel",
    "Amos": "Amos", "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah", "Nahum": "Nahum", "Hab": "Habakkuk",
    "Zep": "Zephaniah", "Hag": "Haggai", "Zec": "Zechariah", "Mal": "Malachi", "Mat": "Matthew", "Mark": "Mark",
    "Luke": "Luke", "John": "John", "Acts": "Acts", "Rom": "Romans", "1Cor": "1 Corinthians", "2Cor": "2 Corinthians",
    "Gal": "Galatians", "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians", "1Th": "1 Thessalonians",
    "2Th": "2 Thessalonians", "1Tim": "1 Timothy", "2Tim": "2 Timothy", "Titus": "Titus", "Phmn": "Philemon",
    "Heb": "Hebrews", "Jas": "James", "1Pet": "1 Peter", "2Pet": "2 Peter", "1Jn": "1 John", "2Jn": "2 John",
    "3Jn": "3 John", "Jude": "Jude", "Rev": "Revelation",
}
VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)")


def read_books(printed):
    """Text by book: the title, a heading per chapter, a line per verse."""
    books = {}
    for line in printed.splitlines():
        book, chapter, verse, text = VERSE.fullmatch(line).groups()
        lines = books.setdefault(book, [TITLES[book]])
        if verse == "1":
            lines += ["", f"Chapter {chapter}", ""]
        lines.append(text.strip())
    return {book: "\n".join(lines) + "\n" for book, lines in books.items()}


def main():
    printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    books = read_books(printed)
    assert list(books) == list(TITLES), "the package prints other books than expected"
    records = "".join(json.dumps({"title": TITLES[book], "text": text}) + "\n" for book, text in books.items())
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(records.encode())
    target = pathlib.Path(__file__).with_name("king-james-bible.jsonl.gz")
    target.write_bytes(packed.getvalue())
    print(f"{target}: {len(books)} documents, {len(records)} bytes, {len(packed.getvalue())} compressed")


if __name__ == "__main__":
    main()
