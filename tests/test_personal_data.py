"""Forms of personal data that are found, and numbers of a description that are not mistaken for them."""

from __future__ import annotations

import time

import pytest
from commands import ROOT
from samples import read_rows

from gpta_local.privacy.personal_data import find

PERSONAL = {
    "an e-mail address": [
        "Write to anna.muster@klinik-nord.example.org now",
        "a.b+c@d.example",
        "a\u200bnna@example.org",
    ],
    "a telephone number": [
        *("+49 30 1234567", "0049 30 12345678", "(415) 555-2671", "+1.415.555.2671", "020 7946 0018"),
        *("030/12345678", "06 12 34 56 78", "0171 2345678"),
    ],
    "a bank account number (IBAN)": [
        *("IBAN DE89 3704 0044 0532 0130 00 please", "GB82WEST12345698765432", "de89 3704 0044 0532 0130 00 BANK"),
    ],
    "a payment card number": ["4111 1111 1111 1111", "4111-1111-1111-1111.", "3782 822463 10005"],
    "a national identity number": [
        *("536-90-4399", "2 95 10 99 126 111 93", "54362315-K", "RCCMNL83S18D969H", "880320-0016", "131052-308T"),
        *("756.9217.0769.85", "390.533.447-05", "2341 2341 2346", "85.07.30-033.28", "211062-5629", "36 574 261 809"),
    ],
    "a record number": [
        *("MRN 123456", "MRN: 00123456", "Patient ID 48213", "patient no. 48213", "Patientennummer 123456"),
        *("Fall-Nr. 12345", "policy number AB-123456", "case no 2024/12345"),
    ],
    "a number of 9 or more digits": ["44051401358", "account 123456789", "call 02071838750 now"],
}
HARMLESS = [
    *("+0.034 Text 2020", "0.034 0.012 0.999", "3.141592653", "the ratio is 1.0000000001", "95 %", "24/7"),
    *("from 01.02.2024 10:30 to 03.02.2024", "2024-01-15T10:30:00", "12/31/2023 2:30pm - 4:15pm", "12-10-2023"),
    *("2019-2020 and 2021-2022", "1990 2000 2010", "covers 1990-2000, 2001-2005", "COVID-19 in 2020-2021"),
    *("1,000,000 rows", "100 000 000 rows", "5 000 000 000 euros", "EUR 12.500,00", "$1,250.00"),
    *("Rows: 120000 training, 7000 validation, 99999999 test", "no. of rows is 10000", "files from 2019", "case 2024"),
    *("ICD 10 C34.9", "arXiv 2404.00189", "version 10.0.19045", "open from 0800-1700", "@user said", "a @ b"),
    *("4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "the record number of patients"),
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_personal_data_are_found_and_their_kind_is_said(kind: str, text: str) -> None:
    assert find(text) == kind
    assert find(f"such as {text}") == kind


@pytest.mark.parametrize("text", HARMLESS)
def test_number_that_a_description_may_hold_is_let_pass(text: str) -> None:
    assert find(text) == ""


def test_made_up_messages_and_the_readme_have_none() -> None:
    rows = [row["text"] for split in ("train", "validation", "test") for row in read_rows(split)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [text for text in (*rows, *readme) if find(text)] == []


@pytest.mark.parametrize("text", ["case-" * 4000, "a" * 20000, "patient " * 4000, "1-" * 10000, "a.b@" * 5000])
def test_reply_of_a_model_that_repeats_itself_is_read_in_no_time(text: str) -> None:
    started = time.process_time()
    find(text)
    assert time.process_time() - started < 1
    assert find(f"{text} anna@example.org") == "an e-mail address"
